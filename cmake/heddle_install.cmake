# Install and export, so that find_package(heddle) works: heddle::tensor ... heddle::cli, headers as "heddle/...".

include(CMakePackageConfigHelpers)

get_property(libraries GLOBAL PROPERTY HEDDLE_LIBRARIES)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/heddle")
install(TARGETS ${libraries} EXPORT heddle_targets
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_BINARY_DIR}/include/heddle" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(TARGETS heddle_yaml_cpp EXPORT heddle_targets)
install(TARGETS heddle RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/configs" DESTINATION "${CMAKE_INSTALL_DATADIR}/heddle")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/bench/reference" DESTINATION "${CMAKE_INSTALL_DATADIR}/heddle/bench")
install(FILES "${PROJECT_SOURCE_DIR}/export/modeling_heddle.py" DESTINATION "${CMAKE_INSTALL_DATADIR}/heddle/export")
install(FILES "${PROJECT_SOURCE_DIR}/completion/heddle.bash" RENAME heddle
        DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/docs" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(FILES "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/CHANGELOG.md" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" RENAME copyright DESTINATION "${CMAKE_INSTALL_DOCDIR}")

install(EXPORT heddle_targets NAMESPACE heddle:: DESTINATION "${package_dir}")
cmake_path(APPEND CMAKE_INSTALL_DATADIR heddle OUTPUT_VARIABLE share_folder)
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/heddle-config.cmake.in"
  "${PROJECT_BINARY_DIR}/heddle-config.cmake" INSTALL_DESTINATION "${package_dir}" PATH_VARS share_folder)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/heddle-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/heddle-config.cmake" "${PROJECT_BINARY_DIR}/heddle-config-version.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/share_folder.cc"
        DESTINATION "${package_dir}")
