#!/usr/bin/env bash
# Collects what a GPU machine without network and -dev packages lacks: headers and static libraries of nlohmann-json,
# CLI11, PCRE2 and GoogleTest, with CMake files. Use: -DCMAKE_PREFIX_PATH=KIT
set -euo pipefail
kit=${1:?usage: hardware_kit.sh FOLDER}
multiarch=$(gcc -print-multiarch)

rm -rf "$kit"
mkdir -p "$kit/include" "$kit/lib/cmake"
take() {  # take TO FROM...: what is there
  local to=$1
  shift
  for from in "$@"; do
    [ -e "$from" ] || { echo "hardware-kit: $from is missing; run scripts/install-deps.sh build test" >&2; exit 1; }
    cp -r "$from" "$to/"
  done
}
take "$kit/include" /usr/include/nlohmann /usr/include/CLI /usr/include/pcre2.h /usr/include/gtest
take "$kit/lib" "/usr/lib/$multiarch/libpcre2-8.a" "/usr/lib/$multiarch/libgtest.a"

# Small package files of our own: Debian's name absolute folders.
mkdir -p "$kit/lib/cmake/nlohmann_json" "$kit/lib/cmake/CLI11" "$kit/lib/cmake/GTest"
package() {  # package NAME VERSION TARGET [LIBRARY]
  local folder=$kit/lib/cmake/$1
  cat > "$folder/$1ConfigVersion.cmake" <<END
set(PACKAGE_VERSION $2)
if(NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
END
  local kind=INTERFACE library=""
  [ $# -lt 4 ] || { kind=STATIC; library="IMPORTED_LOCATION \${kit}/lib/$4"; }
  cat > "$folder/$1Config.cmake" <<END
get_filename_component(kit "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
add_library($3 $kind IMPORTED)
set_target_properties($3 PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \${kit}/include $library)
END
}
package nlohmann_json 3.11.2 nlohmann_json::nlohmann_json
package CLI11 2.1.2 CLI11::CLI11
package GTest 1.12.1 GTest::gtest libgtest.a
du -sh "$kit"
