// What docs/layers.md says of an operator, as far as a test can see.
#pragma once

#include <cctype>
#include <set>
#include <sstream>
#include <string>

// The anchors of a page: its headings as GitHub makes links of them, "LRPE rotate" is lrpe-rotate.
inline std::set<std::string> anchors_of(const std::string& page) {
  std::set<std::string> anchors;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with('#')) continue;
    std::string anchor;
    for (const char letter : line.substr(line.find_first_not_of('#'))) {
      if (std::isalnum(static_cast<unsigned char>(letter)) || letter == '_' || letter == '-') {
        anchor += static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
      } else if (letter == ' ' && !anchor.empty()) {
        anchor += '-';
      }
    }
    anchors.insert(anchor);
  }
  return anchors;
}

// Whether the page documents the operator: `NAME` stands in a heading, at the start of a paragraph, or in the first
// cell of a table's row.
inline bool documents_operator(const std::string& page, const std::string& name) {
  const std::string quoted = "`" + name + "`";
  std::istringstream lines(page);
  bool starts_paragraph = true;
  for (std::string line; std::getline(lines, line);) {
    const bool in_heading = line.starts_with('#') && line.find(quoted) != std::string::npos;
    const bool in_first_cell = line.starts_with('|') && line.substr(0, line.find('|', 1)).find(quoted) != line.npos;
    if (in_heading || in_first_cell || (starts_paragraph && line.starts_with(quoted))) return true;
    starts_paragraph = line.empty() || line.starts_with('#');
  }
  return false;
}
