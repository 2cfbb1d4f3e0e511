# cmake -DPREFIX=DIR -DBUILD=DIR -P install.cmake
# Installs into another folder, moves it to PREFIX, as one may with what is installed, and compares its headers with the
# include root of BUILD.
cmake_minimum_required(VERSION 3.25)

file(REMOVE_RECURSE "${PREFIX}" "${PREFIX}_before")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${PREFIX}_before" RESULT_VARIABLE code OUTPUT_QUIET)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "cmake --install ended with ${code}")
endif()
file(RENAME "${PREFIX}_before" "${PREFIX}")
file(STRINGS "${BUILD}/heddle_headers.txt" expected)
file(GLOB_RECURSE found LIST_DIRECTORIES false RELATIVE "${PREFIX}/include/heddle" "${PREFIX}/include/heddle/*")
list(SORT expected)
list(SORT found)
if(NOT found STREQUAL expected)
  message(FATAL_ERROR "installed were other headers than the public ones: ${found}")
endif()

# The program finds its suites wherever it is started.
execute_process(COMMAND "${PREFIX}/bin/heddle" bench srms_norm --config plain --n 8 --quantity memory
                WORKING_DIRECTORY "${PREFIX}" RESULT_VARIABLE code OUTPUT_VARIABLE rows ERROR_VARIABLE error)
if(NOT code EQUAL 0 OR NOT rows MATCHES "srms_norm +plain +fwd +memory +8 ")
  message(FATAL_ERROR "the installed program ended with ${code}: ${error}${rows}")
endif()

# What the program looks for beside itself, and what the shell looks for.
foreach(file share/heddle/export/modeling_heddle.py share/heddle/configs/toy_copy.yaml share/bash-completion/completions/heddle)
  if(NOT EXISTS "${PREFIX}/${file}")
    message(FATAL_ERROR "${file} was not installed")
  endif()
endforeach()
