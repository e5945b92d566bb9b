# A small stand-in for Slicer's CMake package: enough to configure and install the extension's scripted modules as a
# Slicer build would, and as strict. Modelled after CMake/SlicerMacroBuildScriptedModule.cmake and UseSlicer.cmake of
# Slicer: unknown keywords and listed files that do not exist are errors, relative paths are kept below one flat folder.
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
