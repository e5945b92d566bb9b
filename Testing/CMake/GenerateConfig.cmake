# Slicer writes the extension's description from these.
foreach(entry HOMEPAGE CATEGORY CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${entry}}" STREQUAL "")
    message(FATAL_ERROR "EXTENSION_${entry} is not set")
  endif()
endforeach()
