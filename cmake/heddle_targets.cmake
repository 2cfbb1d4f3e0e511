# heddle_library(NAME FOLDER DEPENDS ... [PUBLIC_HEADERS ...])
#                                           library heddle_NAME of all sources in FOLDER but main.cc; its public headers
#                                           are those listed, or else all outside the folders of one device
# heddle_group(NAME DEPENDS ...)            several of these libraries under one name
# heddle_link(NAME PUBLIC|PRIVATE ...)      external libraries of heddle_NAME
# heddle_examples(FOLDER)                   one executable and one test for each source in FOLDER
# heddle_share(NAME)                        tells heddle_NAME where configs, published figures and export/ lie, seen from the
#                                           program, and links them into the build folder as an installation has them;
#                                           heddle_share_folder says it to programs of others (share_folder.cc)
# heddle_compile_together(TARGET)           compiles the sources of TARGET several at a time
# heddle_include_sources(TARGET)            lets TARGET include from the root of the repository, as our own code does
# Folders without sources are no error: the library is then an INTERFACE that carries its dependencies.
#
# Global properties: HEDDLE_LIBRARIES, all library targets; HEDDLE_PUBLIC_HEADERS, the headers that are installed, as paths
# from the root; HEDDLE_DAG, a line `NAME FOLDER DEPENDS...` for each of the above, which tests/architecture holds against
# the #include lines.

set_property(GLOBAL PROPERTY HEDDLE_LIBRARIES "")
set_property(GLOBAL PROPERTY HEDDLE_PUBLIC_HEADERS "")
set_property(GLOBAL PROPERTY HEDDLE_DAG "")

function(heddle_dag name folder)
  list(JOIN ARGN " " depends)
  set_property(GLOBAL APPEND PROPERTY HEDDLE_DAG "${name} ${folder} ${depends}")
endfunction()

# All C++ sources below `folder`, and the CUDA ones in a CUDA build.
function(heddle_sources result folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${folder}/*.cc")
  if(HEDDLE_CUDA_ENABLED)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${folder}/*.cu")
    list(APPEND sources ${cuda_sources})
    # Each takes minutes, and CMake from 3.31 on would compile them as one in a unity build.
    set_source_files_properties(${cuda_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    if(HEDDLE_CUDA_PARSE_ONLY)
      list(FILTER cuda_sources INCLUDE REGEX "${HEDDLE_CUDA_PARSE_ONLY}")
      set_source_files_properties(${cuda_sources} PROPERTIES COMPILE_OPTIONS -fdevice-syntax-only)
    endif()
  else()
    list(FILTER sources EXCLUDE REGEX "/core/runtime/cuda_[^/]*\\.cc$|/kernels/[a-z_]+/cuda/|_gpu_test\\.cc$")
  endif()
  if(NOT HEDDLE_NCCL_ENABLED)
    list(FILTER sources EXCLUDE REGEX "/core/distributed/nccl_[^/]*\\.cc$")
  endif()
  heddle_without_other_libraries(sources ${folder})
  set(${result} ${sources} PARENT_SCOPE)
endfunction()

# Takes out of the list `files` those that lie in a folder of another library below `folder`, which was declared before.
function(heddle_without_other_libraries files folder)
  get_property(dag GLOBAL PROPERTY HEDDLE_DAG)
  set(kept ${${files}})
  foreach(line IN LISTS dag)
    string(REGEX REPLACE "^[^ ]+ ([^ ]+).*$" "\\1" other "${line}")
    if(other MATCHES "^${folder}/")
      list(FILTER kept EXCLUDE REGEX "^${PROJECT_SOURCE_DIR}/${other}/")
    endif()
  endforeach()
  set(${files} ${kept} PARENT_SCOPE)
endfunction()

# The headers of `folder` that others may include: not those of the folders of one device.
function(heddle_public_headers result folder)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${folder}/*.h")
  list(FILTER headers EXCLUDE REGEX "/kernels/[a-z_]+/(cpu|cuda)/|/core/distributed/nccl_")
  heddle_without_other_libraries(headers ${folder})
  set(${result} ${headers} PARENT_SCOPE)
endfunction()

# The root comes before all other folders, so that an include_directories() of a project around heddle changes nothing here.
# What includes from it does not see the include root "heddle/..." (heddle_headers.cmake): a header is included by one name.
function(heddle_include_sources target)
  target_include_directories(${target} BEFORE PRIVATE "${PROJECT_SOURCE_DIR}")
  set_target_properties(${target} PROPERTIES HEDDLE_INCLUDES_SOURCES ON)
endfunction()

# Compiles the sources of TARGET several at a time (a "unity build"), which takes less than half the time. Two sources of a
# target then do not use one name for two things, not even where each has it in a namespace without a name.
# -DCMAKE_UNITY_BUILD=OFF compiles each alone, as one wants it who edits them.
function(heddle_compile_together target)
  if(NOT DEFINED CMAKE_UNITY_BUILD)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
  endif()
  if(NOT DEFINED CMAKE_UNITY_BUILD_BATCH_SIZE)
    set_target_properties(${target} PROPERTIES UNITY_BUILD_BATCH_SIZE 16)
  endif()
endfunction()

function(heddle_library name folder)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "DEPENDS;PUBLIC_HEADERS")
  heddle_dag(${name} ${folder} ${arg_DEPENDS})
  list(TRANSFORM arg_DEPENDS PREPEND heddle_)
  heddle_sources(sources ${folder})
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  if(sources)
    set(scope PUBLIC)
    add_library(heddle_${name} STATIC ${sources})
    if(NOT folder MATCHES "^kernels/")  # a source of kernels takes as long as many others
      heddle_compile_together(heddle_${name})
    endif()
    target_link_libraries(heddle_${name} PRIVATE $<BUILD_INTERFACE:heddle_flags>)
    heddle_include_sources(heddle_${name})
  else()
    set(scope INTERFACE)
    add_library(heddle_${name} INTERFACE)
  endif()
  add_library(heddle::${name} ALIAS heddle_${name})
  set_target_properties(heddle_${name} PROPERTIES EXPORT_NAME ${name})
  target_link_libraries(heddle_${name} ${scope} ${arg_DEPENDS})
  target_compile_features(heddle_${name} ${scope} cxx_std_20)
  if(arg_PUBLIC_HEADERS)
    list(TRANSFORM arg_PUBLIC_HEADERS PREPEND "${PROJECT_SOURCE_DIR}/" OUTPUT_VARIABLE headers)
  else()
    heddle_public_headers(headers ${folder})
  endif()
  list(TRANSFORM headers REPLACE "^${PROJECT_SOURCE_DIR}/" "")
  set_property(GLOBAL APPEND PROPERTY HEDDLE_PUBLIC_HEADERS ${headers})
  set(is_user "$<NOT:$<BOOL:$<TARGET_PROPERTY:HEDDLE_INCLUDES_SOURCES>>>")
  target_include_directories(heddle_${name} INTERFACE
    "$<BUILD_INTERFACE:$<${is_user}:${PROJECT_BINARY_DIR}/include>>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  if(HEDDLE_CUDA_ENABLED)
    target_compile_definitions(heddle_${name} ${scope} HEDDLE_CUDA=1)
  endif()
  if(NOT HEDDLE_OPENMP)
    target_compile_definitions(heddle_${name} ${scope} HEDDLE_STD_THREADS=1)
  endif()
  set_property(GLOBAL APPEND PROPERTY HEDDLE_LIBRARIES heddle_${name})
endfunction()

function(heddle_group name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "DEPENDS")
  list(TRANSFORM arg_DEPENDS PREPEND heddle_)
  add_library(heddle_${name} INTERFACE)
  add_library(heddle::${name} ALIAS heddle_${name})
  set_target_properties(heddle_${name} PROPERTIES EXPORT_NAME ${name})
  target_link_libraries(heddle_${name} INTERFACE ${arg_DEPENDS})
  set_property(GLOBAL APPEND PROPERTY HEDDLE_LIBRARIES heddle_${name})
endfunction()

function(heddle_link name scope)
  get_target_property(type heddle_${name} TYPE)
  if(type STREQUAL "INTERFACE_LIBRARY")
    set(scope INTERFACE)
  endif()
  target_link_libraries(heddle_${name} ${scope} ${ARGN})
endfunction()

function(heddle_examples folder)
  heddle_dag(examples ${folder} cli)
  if(NOT HEDDLE_BUILD_EXAMPLES)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${folder}/*.cc")
  foreach(source IN LISTS sources)
    cmake_path(GET source STEM stem)
    add_executable(example_${stem} ${source})
    target_link_libraries(example_${stem} PRIVATE heddle_flags heddle_cli)
    if(HEDDLE_BUILD_TESTS)
      add_test(NAME example.${stem} COMMAND example_${stem})
    endif()
  endforeach()
endfunction()

function(heddle_share name)
  file(RELATIVE_PATH share "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_DATADIR}/heddle")
  target_compile_definitions(heddle_${name} PRIVATE HEDDLE_SHARE_FROM_PROGRAM="${share}")
  file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/share/heddle")
  foreach(folder configs bench export)
    file(CREATE_LINK "${PROJECT_SOURCE_DIR}/${folder}" "${PROJECT_BINARY_DIR}/share/heddle/${folder}" SYMBOLIC)
  endforeach()
  # Our own program finds the folder from where it lies, wherever it is installed. One of a project around heddle does not.
  set(share_folder "")
  if(NOT PROJECT_IS_TOP_LEVEL)
    set(share_folder "${PROJECT_BINARY_DIR}/share/heddle")
  endif()
  add_library(heddle_share_folder STATIC "${PROJECT_SOURCE_DIR}/cmake/share_folder.cc")
  target_compile_definitions(heddle_share_folder PRIVATE HEDDLE_SHARE_FOLDER="${share_folder}")
  target_link_libraries(heddle_share_folder PRIVATE heddle_flags)
  target_link_libraries(heddle_${name} PUBLIC $<BUILD_INTERFACE:heddle_share_folder>)
endfunction()
