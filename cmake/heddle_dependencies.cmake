# Libraries that heddle stands on. All are packages of the system; ./dev setup installs them.

find_package(Threads REQUIRED)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(fmt REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json REQUIRED)
if(HEDDLE_STATIC_DEPS)
  find_library(HEDDLE_ZLIB_ARCHIVE libz.a)
  if(HEDDLE_ZLIB_ARCHIVE)
    set(ZLIB_USE_STATIC_LIBS ON)
  endif()
endif()
find_package(ZLIB REQUIRED)
find_package(CLI11 REQUIRED)
if(HEDDLE_OPENMP)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
endif()
if(HEDDLE_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

# For `heddle info`.
set(heddle_dependency_versions "Eigen ${Eigen3_VERSION}" "yaml-cpp ${yaml-cpp_VERSION}" "fmt ${fmt_VERSION}"
    "nlohmann_json ${nlohmann_json_VERSION}" "CLI11 ${CLI11_VERSION}" "zlib ${ZLIB_VERSION_STRING}")

# yaml-cpp names its target yaml-cpp up to 0.7 and yaml-cpp::yaml-cpp from 0.8 on.
add_library(heddle_yaml_cpp INTERFACE)
add_library(heddle::heddle_yaml_cpp ALIAS heddle_yaml_cpp)
set_target_properties(heddle_yaml_cpp PROPERTIES EXPORT_NAME yaml_cpp)
set(yaml_cpp_target "$<IF:$<TARGET_EXISTS:yaml-cpp::yaml-cpp>,yaml-cpp::yaml-cpp,yaml-cpp>")

if(HEDDLE_STATIC_DEPS)
  find_library(HEDDLE_YAML_CPP_ARCHIVE libyaml-cpp.a)
  if(HEDDLE_YAML_CPP_ARCHIVE)
    set(yaml_cpp_target "$<BUILD_INTERFACE:${HEDDLE_YAML_CPP_ARCHIVE}>$<INSTALL_INTERFACE:${yaml_cpp_target}>")
  endif()
  set(heddle_fmt fmt::fmt-header-only)  # Debian has no archive of fmt
else()
  set(heddle_fmt fmt::fmt)
endif()
target_link_libraries(heddle_yaml_cpp INTERFACE "${yaml_cpp_target}")
