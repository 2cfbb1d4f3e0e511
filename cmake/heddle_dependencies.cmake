# Libraries that heddle stands on. All are packages of the system; ./dev setup installs them.

# heddle_decided(NAME NEEDS LIBRARY WITH WITHOUT): says what came of the choice HEDDLE_NAME, and refuses ON where
# HEDDLE_NAME_ENABLED is OFF. NEEDS: what would be needed. LIBRARY: what `heddle info` shows. WITHOUT: nothing is said when empty.
function(heddle_decided name needs library with without)
  if(HEDDLE_${name}_ENABLED)
    message(STATUS "heddle: ${with}")
    set_property(GLOBAL APPEND PROPERTY HEDDLE_LIBRARY_VERSIONS "${library}")
  elseif(HEDDLE_${name} STREQUAL "ON")
    message(FATAL_ERROR "HEDDLE_${name}=ON needs ${needs}")
  elseif(without)
    message(STATUS "heddle: ${without}")
  endif()
endfunction()

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
# oneDNN by its files: the CMake package of Debian's asks for the development files of OpenCL, which it does not need.
set(HEDDLE_ONEDNN_ENABLED OFF)
if(HEDDLE_ONEDNN AND HEDDLE_OPENMP)
  find_library(HEDDLE_ONEDNN_LIBRARY dnnl)
  find_path(HEDDLE_ONEDNN_INCLUDE oneapi/dnnl/dnnl_version.h)
  if(HEDDLE_ONEDNN_LIBRARY AND HEDDLE_ONEDNN_INCLUDE)
    set(HEDDLE_ONEDNN_ENABLED ON)
    file(STRINGS "${HEDDLE_ONEDNN_INCLUDE}/oneapi/dnnl/dnnl_version.h" numbers REGEX "define DNNL_VERSION_(MAJOR|MINOR|PATCH) ")
    list(TRANSFORM numbers REPLACE ".* ([0-9]+)$" "\\1")
    list(JOIN numbers "." dnnl_VERSION)
  endif()
endif()
heddle_decided(ONEDNN "oneDNN (Debian package libdnnl-dev) and HEDDLE_OPENMP=ON" "oneDNN ${dnnl_VERSION}"
  "float32 and bfloat16 matrix products on the CPU by oneDNN ${dnnl_VERSION}"
  "matrix products on the CPU by Eigen ${Eigen3_VERSION}")

# Its two libraries by their files: Debian's package has no CMake package.
set(HEDDLE_SENTENCEPIECE_ENABLED OFF)
if(HEDDLE_SENTENCEPIECE)
  find_library(HEDDLE_SENTENCEPIECE_LIBRARY sentencepiece)
  find_library(HEDDLE_SENTENCEPIECE_TRAIN_LIBRARY sentencepiece_train)
  find_path(HEDDLE_SENTENCEPIECE_INCLUDE sentencepiece_trainer.h)
  if(HEDDLE_SENTENCEPIECE_LIBRARY AND HEDDLE_SENTENCEPIECE_TRAIN_LIBRARY AND HEDDLE_SENTENCEPIECE_INCLUDE)
    set(HEDDLE_SENTENCEPIECE_ENABLED ON)
  endif()
endif()
heddle_decided(SENTENCEPIECE "sentencepiece (Debian package libsentencepiece-dev)" "sentencepiece"
  "tokenizers of sentencepiece" "no tokenizer but bytes (Debian package libsentencepiece-dev)")

# The C interface alone is used, through the C++ compiler.
set(HEDDLE_MPI_ENABLED OFF)
if(HEDDLE_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  set(HEDDLE_MPI_ENABLED ${MPI_CXX_FOUND})
  list(FILTER MPI_CXX_LIBRARIES EXCLUDE REGEX "mpi_cxx|mpicxx")
endif()
heddle_decided(MPI "MPI (Debian packages libopenmpi-dev and openmpi-bin)" "MPI ${MPI_CXX_VERSION}"
  "several processes by MPI ${MPI_CXX_VERSION}" "no MPI (Debian packages libopenmpi-dev and openmpi-bin)")

# The header alone: libnccl.so.2 is opened by a run that needs it.
set(HEDDLE_NCCL_ENABLED OFF)
if(HEDDLE_NCCL AND HEDDLE_CUDA_ENABLED)
  find_path(HEDDLE_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  if(HEDDLE_NCCL_INCLUDE)
    set(HEDDLE_NCCL_ENABLED ON)
    file(STRINGS "${HEDDLE_NCCL_INCLUDE}/nccl.h" numbers REGEX "define NCCL_(MAJOR|MINOR|PATCH) ")
    list(TRANSFORM numbers REPLACE ".* ([0-9]+)$" "\\1")
    list(JOIN numbers "." nccl_VERSION)
  endif()
endif()
set(without_nccl "")
if(HEDDLE_CUDA_ENABLED)
  set(without_nccl "one GPU; for several nccl.h is needed (package libnccl-dev of NVIDIA)")
endif()
heddle_decided(NCCL "CUDA and nccl.h (package libnccl-dev of NVIDIA)" "NCCL ${nccl_VERSION}"
  "several GPUs by NCCL, compiled with the header of ${nccl_VERSION}" "${without_nccl}")

if(HEDDLE_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

# For `heddle info`.
get_property(heddle_dependency_versions GLOBAL PROPERTY HEDDLE_LIBRARY_VERSIONS)
list(PREPEND heddle_dependency_versions "Eigen ${Eigen3_VERSION}" "yaml-cpp ${yaml-cpp_VERSION}" "fmt ${fmt_VERSION}"
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
