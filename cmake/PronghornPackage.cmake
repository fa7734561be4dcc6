# A Debian package of the command line, the library and what is installed with them, and one of the
# plugin for mpirun: `cpack` in the build folder writes them. Their dependencies are found from the
# programs.
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
    "g++, cmake, libfmt-dev, libspdlog-dev, nlohmann-json3-dev, zlib1g-dev, libhwy-dev, libsentencepiece-dev, libonig-dev, libutf8proc-dev, libxxhash-dev, libpng-dev, libsndfile1-dev, libsamplerate0-dev")
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEBIAN_UNSPECIFIED_PACKAGE_NAME pronghorn)
set(CPACK_DEBIAN_MPI_PACKAGE_NAME pronghorn-mpi)
set(CPACK_DEBIAN_MPI_PACKAGE_DEPENDS "pronghorn, openmpi-bin")
set(CPACK_DEBIAN_MPI_PACKAGE_SUGGESTS "")
set(CPACK_COMPONENT_MPI_DESCRIPTION "Training by several processes: pronghorn under mpirun")
include(CPack)
