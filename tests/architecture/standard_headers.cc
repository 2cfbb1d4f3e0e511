#include "standard_headers.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

bool in_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// The end of the comment or literal that begins at `begin`; `begin` itself where none does.
size_t end_of_literal(const std::string& text, size_t begin) {
  const auto after = [&](const std::string& mark, size_t from) {
    const size_t found = text.find(mark, from);
    return found == std::string::npos ? text.size() : found + mark.size();
  };
  const char before = begin > 0 ? text[begin - 1] : ' ';
  if (text.compare(begin, 2, "//") == 0) return std::min(text.find('\n', begin), text.size());
  if (text.compare(begin, 2, "/*") == 0) return after("*/", begin + 2);
  if (text[begin] == '"' && before == 'R') {
    const size_t open = text.find('(', begin);
    return after(")" + text.substr(begin + 1, open - begin - 1) + "\"", open);
  }
  const bool is_digit_separator = text[begin] == '\'' && in_name(before);
  if ((text[begin] != '"' && text[begin] != '\'') || is_digit_separator) return begin;
  size_t end = begin + 1;
  while (end < text.size() && text[end] != text[begin]) end += text[end] == '\\' ? 2 : 1;
  return std::min(end + 1, text.size());
}

// The text with a space instead of each comment and literal; lines stay lines.
std::string code_of(const std::string& text) {
  std::string code;
  for (size_t i = 0; i < text.size();) {
    const size_t end = end_of_literal(text, i);
    if (end == i) {
      code += text[i++];
    } else {
      code += ' ' + std::string(static_cast<size_t>(std::count(&text[i], &text[i] + (end - i), '\n')), '\n');
      i = end;
    }
  }
  return code;
}

// The names in a piece of code with the number of the line where each comes first; of std::a::b the name is std::a.
std::map<std::string, int> names_in(const std::string& code) {
  std::map<std::string, int> names;
  int line = 1;
  for (size_t i = 0; i < code.size();) {
    if (code[i] == '\n') ++line;
    size_t end = i;
    while (end < code.size() && in_name(code[end])) ++end;
    const bool is_member = i > 0 && (code[i - 1] == '.' || code[i - 1] == '>' || code[i - 1] == ':');
    const bool in_std = code.compare(i, end - i, "std") == 0 && code.compare(end, 2, "::") == 0;
    if (in_std) {
      end += 2;
      while (end < code.size() && in_name(code[end])) ++end;
    }
    if (end > i && (in_std || !is_member)) names.emplace(code.substr(i, end - i), line);
    i = std::max(end, i + 1);
  }
  return names;
}

std::set<std::string> includes_in(const std::string& text) {
  static const std::regex include_line(R"(^\s*#\s*include\s*(<[^>]+>).*)");
  std::set<std::string> includes;
  std::istringstream lines(text);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_match(line, match, include_line)) includes.insert(match[1]);
  }
  return includes;
}

bool meet(const std::set<std::string>& a, const std::set<std::string>& b) {
  return std::any_of(a.begin(), a.end(), [&](const std::string& word) { return b.contains(word); });
}

}  // namespace

StandardHeaders::StandardHeaders(std::istream& lines) {
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string header;
    words >> header;
    for (std::string name; words >> name;) headers_by_name_[name].insert(header);
  }
}

std::vector<std::string> StandardHeaders::violations(const std::string& path, const std::string& text,
                                                     const std::string& own_header) const {
  const std::set<std::string> included = includes_in(text), through_own = includes_in(own_header);
  std::vector<std::string> messages;
  for (const auto& [name, line] : names_in(code_of(text))) {
    const std::string place = path + ":" + std::to_string(line) + ": " + name;
    const auto known = headers_by_name_.find(name);
    if (known == headers_by_name_.end()) {
      if (name.starts_with("std::")) {
        messages.push_back(place +
                           " is not in tests/architecture/standard_headers.txt: add it to the line of its header");
      }
    } else if (!meet(known->second, included) && !meet(known->second, through_own)) {
      messages.push_back(place + " is used without #include " + *known->second.begin());
    }
  }
  return messages;
}
