# Options, build type, and the compile flags that every target of heddle shares.
# The same flags for every file: floating-point contraction must not differ between two translation units.

# heddle_choice(NAME DESCRIPTION): an option that is AUTO, ON or OFF.
function(heddle_choice name description)
  set(${name} AUTO CACHE STRING "${description}")
  set_property(CACHE ${name} PROPERTY STRINGS AUTO ON OFF)
endfunction()

option(HEDDLE_NATIVE "Compile for the CPU of this machine (-march=native)" ON)
option(HEDDLE_WERROR "Warnings are errors" OFF)
option(HEDDLE_OPENMP "CPU kernels run on OpenMP threads; OFF: on std::thread, which ThreadSanitizer can see" ON)
heddle_choice(HEDDLE_ONEDNN
  "float32 and bfloat16 matrix products on the CPU through oneDNN (AUTO: where it is found and HEDDLE_OPENMP is ON), else Eigen")
heddle_choice(HEDDLE_SENTENCEPIECE "Tokenizers of sentencepiece (AUTO: where it is found); without it bytes alone")
heddle_choice(HEDDLE_MPI "Several processes on CPUs through MPI (AUTO: where it is found); without it one process, or GPUs")
heddle_choice(HEDDLE_NCCL
  "Several GPUs through NCCL, whose library is opened when it is needed (AUTO: with CUDA, where nccl.h is found)")
option(HEDDLE_STATIC_DEPS "Link yaml-cpp and zlib statically where their archives exist, and use fmt from its headers" OFF)
option(HEDDLE_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(HEDDLE_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(HEDDLE_FUZZ "Build the programs of ./dev fuzz; needs clang, and address in HEDDLE_SANITIZE" OFF)
set(HEDDLE_SANITIZE "" CACHE STRING "Value of -fsanitize=, e.g. address,undefined or thread")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

# ccache where it is there and the user has chosen no launcher; the sloppiness lets it serve precompiled headers.
find_program(HEDDLE_CCACHE ccache)
if(HEDDLE_CCACHE)
  foreach(language CXX CUDA)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER
          "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${HEDDLE_CCACHE}")
    endif()
  endforeach()
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(heddle_flags INTERFACE)
target_compile_definitions(heddle_flags INTERFACE EIGEN_DONT_PARALLELIZE EIGEN_MPL2_ONLY)
set(cxx_flags -Wall -Wextra -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # The first is false in gcc's AVX-512 and sanitized standard headers; the second is a warning for headers, which gcc takes
  # sources for that are compiled together.
  list(APPEND cxx_flags -Wno-maybe-uninitialized -Wno-subobject-linkage)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  list(APPEND cxx_flags -Wno-pass-failed)  # loops that sanitizers keep from being vectorized
endif()
if(HEDDLE_WERROR)
  list(APPEND cxx_flags -Werror)
endif()
if(HEDDLE_NATIVE)
  list(APPEND cxx_flags -march=native)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-mprefer-vector-width=512 HEDDLE_HAS_VECTOR_WIDTH)  # x86 only
  if(HEDDLE_HAS_VECTOR_WIDTH)
    list(APPEND cxx_flags -mprefer-vector-width=512)
  endif()
  # g++ 12 with AVX-512 takes constants that end with zeros, as {1, 1, 1, 1, 0, 0, 0, 0}, for eight ones when it may move
  # more than 16 bytes of a constant at once (tests/runtime/compiler_test.cc).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    check_cxx_compiler_flag(-mmove-max=128 HEDDLE_HAS_MOVE_MAX)
    if(HEDDLE_HAS_MOVE_MAX)
      list(APPEND cxx_flags -mmove-max=128 -mstore-max=128)
      # Loops that copy or clear the few partial sums of a row stay loops: as calls of memcpy they would be made of moves
      # of 16 bytes, which the wider loads that follow must wait for.
      set(HEDDLE_KERNEL_FLAGS -fno-tree-loop-distribute-patterns)
    endif()
  endif()
endif()
# A target with the property HEDDLE_UNSANITIZED is only linked with the sanitizers, which then see what it asks of ours.
if(HEDDLE_SANITIZE)
  set(sanitize_flags -fsanitize=${HEDDLE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(HEDDLE_SANITIZE MATCHES "address,undefined")
    list(APPEND sanitize_flags -fno-sanitize=null,object-size)  # address sees those, in less time
  endif()
  list(APPEND cxx_flags "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:HEDDLE_UNSANITIZED>>>:${sanitize_flags}>")
  target_link_options(heddle_flags INTERFACE ${sanitize_flags})
endif()
target_compile_options(heddle_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${cxx_flags}>")
