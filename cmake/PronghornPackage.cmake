# A Debian package of the command line, the library and what is installed with them: `cpack` in the
# build folder writes it. Its dependencies are found from the program.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME pronghorn)
set(CPACK_PACKAGE_VENDOR "Pronghorn developers")
set(CPACK_PACKAGE_CONTACT "Pronghorn developers <pronghorn@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# What programs that are built against the library need besides.
set(CPACK_DEBIAN_PACKAGE_SUGGESTS
    "g++, cmake, libfmt-dev, libspdlog-dev, nlohmann-json3-dev, zlib1g-dev, libhwy-dev, libsentencepiece-dev, libonig-dev, libutf8proc-dev, libxxhash-dev")
include(CPack)
