// Whether a source includes the header of each name of the standard library that it uses. What other headers happen to
// include differs between standard libraries and their versions, so only a direct include is sure to compile
// everywhere.
#pragma once

#include <istream>
#include <map>
#include <set>
#include <string>
#include <vector>

class StandardHeaders {
 public:
  // Reads lines `<HEADER> NAMES...`, names as sources write them: std::sort, int64_t. A name may stand in the lines of
  // several headers: then any one of them will do.
  explicit StandardHeaders(std::istream& lines);

  // One message for each name in `text`, of the file at `path`, whose header neither `text` includes nor `own_header`,
  // the text of the header of the same name; and one for each std:: name that no line holds.
  std::vector<std::string> violations(const std::string& path, const std::string& text,
                                      const std::string& own_header = "") const;

 private:
  std::map<std::string, std::set<std::string>> headers_by_name_;
};
