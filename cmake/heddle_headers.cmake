# The include root that users of heddle see: BUILD/include/heddle/... holds every public header, and each includes the
# others as "heddle/...". So a user's own layers/module.h collides with none of ours, neither after an installation nor
# when heddle is added by add_subdirectory(). The sources of heddle themselves include from the root of the repository.
#
# heddle_include_root()    target heddle_headers, which writes that root and on which every library depends;
#                          called once, when all libraries are declared

function(heddle_include_root)
  get_property(headers GLOBAL PROPERTY HEDDLE_PUBLIC_HEADERS)
  get_property(libraries GLOBAL PROPERTY HEDDLE_LIBRARIES)
  set(root "${PROJECT_BINARY_DIR}/include/heddle")
  set(list "${PROJECT_BINARY_DIR}/heddle_headers.txt")
  set(stamp "${PROJECT_BINARY_DIR}/heddle_headers.stamp")
  list(JOIN headers "\n" lines)
  file(GENERATE OUTPUT "${list}" CONTENT "${lines}\n")
  list(TRANSFORM headers PREPEND "${root}/" OUTPUT_VARIABLE written)
  list(TRANSFORM headers PREPEND "${PROJECT_SOURCE_DIR}/" OUTPUT_VARIABLE sources)
  set(script "${PROJECT_SOURCE_DIR}/cmake/write_include_root.cmake")
  # As byproducts the headers keep their times when nothing in them changes, and what includes them is not built again.
  add_custom_command(OUTPUT "${stamp}" BYPRODUCTS ${written}
    COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DROOT=${root}" "-DHEADERS=${list}" -P "${script}"
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamp}"
    DEPENDS ${sources} "${list}" "${script}" VERBATIM
    COMMENT "Writing the include root heddle/")
  add_custom_target(heddle_headers DEPENDS "${stamp}")
  foreach(library IN LISTS libraries)
    add_dependencies(${library} heddle_headers)
  endforeach()
endfunction()
