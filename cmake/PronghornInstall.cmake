# Installs the library, its header and the command line, with a package for find_package(pronghorn).
include(CMakePackageConfigHelpers)

set(PRONGHORN_PACKAGE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/pronghorn")

install(TARGETS pronghorn EXPORT pronghornTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/pronghorn" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT pronghornTargets NAMESPACE pronghorn:: DESTINATION "${PRONGHORN_PACKAGE_DIR}")

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/pronghornConfig.cmake.in" "${PROJECT_BINARY_DIR}/pronghornConfig.cmake"
  INSTALL_DESTINATION "${PRONGHORN_PACKAGE_DIR}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/pronghornConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/pronghornConfig.cmake"
              "${PROJECT_BINARY_DIR}/pronghornConfigVersion.cmake"
        DESTINATION "${PRONGHORN_PACKAGE_DIR}")
