# `cpack` makes a Debian package and a tar.gz of what is installed, which runs from any folder: ./dev package.
# The libraries that the program needs are found out by dpkg-shlibdeps. Those that a program on top of heddle is compiled
# with are suggested: who only trains does not need them.

set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME heddle)
set(CPACK_PACKAGE_VENDOR "The heddle authors")
# Debian wants an address, and the project has none: this one is in a domain that is reserved never to exist (RFC 2606).
# Whoever passes a package on gives an address: cmake -DCPACK_PACKAGE_CONTACT="NAME <ADDRESS>".
if(NOT CPACK_PACKAGE_CONTACT)
  set(CPACK_PACKAGE_CONTACT "The heddle authors <heddle@heddle.invalid>")
endif()
set(CPACK_PACKAGE_DESCRIPTION "Trains, evaluates and samples language models with linear attention,
retention and softmax attention, on CPUs and NVIDIA GPUs: the program, its
libraries and headers for CMake, configs, and pages.")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_STRIP_FILES ON)
set(CPACK_VERBATIM_VARIABLES ON)
if(HEDDLE_CUDA_ENABLED)
  set(CPACK_SYSTEM_NAME "linux-${CMAKE_SYSTEM_PROCESSOR}-cuda")
else()
  set(CPACK_SYSTEM_NAME "linux-${CMAKE_SYSTEM_PROCESSOR}")
endif()

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS
    "libeigen3-dev, libfmt-dev, libyaml-cpp-dev, nlohmann-json3-dev, zlib1g-dev, bash-completion, python3-torch")
include(CPack)
