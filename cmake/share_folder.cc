// Where the heddle lies whose libraries a program links. That is not known before find_package() has found them, which
// therefore compiles this source anew (heddle-config.cmake.in). Used by tools/share_folders.cc.
namespace heddle {

const char* share_folder_of_libraries();
const char* share_folder_of_libraries() { return HEDDLE_SHARE_FOLDER; }

}  // namespace heddle
