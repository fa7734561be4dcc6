# Installs the library, its header, the configurations and the licence, with a package for
# find_package(pronghorn) and one for pkg-config. (The command line is installed where it is built.)
include(CMakePackageConfigHelpers)

set(PRONGHORN_PACKAGE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/pronghorn")

install(TARGETS pronghorn EXPORT pronghornTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/pronghorn" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/configs" DESTINATION ${CMAKE_INSTALL_DATADIR}/pronghorn)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(EXPORT pronghornTargets NAMESPACE pronghorn:: DESTINATION "${PRONGHORN_PACKAGE_DIR}")

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/pronghornConfig.cmake.in" "${PROJECT_BINARY_DIR}/pronghornConfig.cmake"
  INSTALL_DESTINATION "${PRONGHORN_PACKAGE_DIR}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/pronghornConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/pronghornConfig.cmake"
              "${PROJECT_BINARY_DIR}/pronghornConfigVersion.cmake"
        DESTINATION "${PRONGHORN_PACKAGE_DIR}")

# The way back to the prefix, so that an installation can be moved.
set(PRONGHORN_PC_DIR "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH PRONGHORN_PC_PREFIX "/${PRONGHORN_PC_DIR}" "/")
string(REGEX REPLACE "/$" "" PRONGHORN_PC_PREFIX "${PRONGHORN_PC_PREFIX}")
configure_file("${CMAKE_CURRENT_LIST_DIR}/pronghorn.pc.in" "${PROJECT_BINARY_DIR}/pronghorn.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/pronghorn.pc" DESTINATION "${PRONGHORN_PC_DIR}")
