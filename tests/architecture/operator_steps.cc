#include "operator_steps.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "docs_sections.h"

namespace {

namespace fs = std::filesystem;

bool is_word(char letter) { return std::isalnum(static_cast<unsigned char>(letter)) || letter == '_'; }

// --- A source as text ---

// The text without comments; lines stay lines.
std::string without_comments(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      const size_t begin = i;
      for (++i; i < text.size() && text[i] != '"' && text[i] != '\n'; ++i) i += text[i] == '\\';
      result += text.substr(begin, i - begin + 1);
    } else if (text.compare(i, 2, "//") == 0) {
      while (i + 1 < text.size() && text[i + 1] != '\n') ++i;
    } else if (text.compare(i, 2, "/*") == 0) {
      for (; i < text.size() && text.compare(i, 2, "*/") != 0; ++i) result += text[i] == '\n' ? "\n" : "";
      ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

// Where `words` stand in `code`, not as a part of a longer word.
std::vector<size_t> places_of(const std::string& code, const std::string& words) {
  std::vector<size_t> places;
  for (size_t at = code.find(words); at != std::string::npos; at = code.find(words, at + 1)) {
    const size_t end = at + words.size();
    const bool starts = at == 0 || !is_word(code[at - 1]) || !is_word(words.front());
    const bool ends = end == code.size() || !is_word(code[end]) || !is_word(words.back());
    if (starts && ends) places.push_back(at);
  }
  return places;
}

bool contains(const std::string& code, const std::string& words) { return !places_of(code, words).empty(); }

std::string word_at(const std::string& code, size_t at) {
  const size_t begin = std::min(code.find_first_not_of(" \t\n", at), code.size());
  size_t end = begin;
  while (end < code.size() && is_word(code[end])) ++end;
  return code.substr(begin, end - begin);
}

// Whether the parameter list that opens at or behind `at` is followed by a body.
bool has_body(const std::string& code, size_t at) {
  size_t i = code.find('(', at);
  int depth = 0;
  for (; i < code.size(); ++i) {
    depth += code[i] == '(' ? 1 : code[i] == ')' ? -1 : 0;
    if (depth == 0) break;
  }
  i = i < code.size() ? code.find_first_not_of(" \t\n", i + 1) : i;
  return i < code.size() && code[i] == '{';
}

// Whether `signature`, "void norm_forward(Context&", begins a definition in the code.
bool defines(const std::string& code, const std::string& signature) {
  const std::vector<size_t> places = places_of(code, signature);
  return std::any_of(places.begin(), places.end(), [&](size_t at) { return has_body(code, at); });
}

std::set<std::string> includes_of(const std::string& code) {
  std::set<std::string> includes;
  std::istringstream lines(code);
  for (std::string line; std::getline(lines, line);) {
    const size_t quote = line.find('"');
    if (!line.starts_with("#include \"")) continue;
    includes.insert(line.substr(quote + 1, line.find('"', quote + 1) - quote - 1));
  }
  return includes;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// --- The checks ---

class Checker {
 public:
  explicit Checker(const SourceTree& tree) : tree_(tree) {
    for (const auto& [path, text] : tree) {
      if (path == kDocs) continue;
      code_[path] = without_comments(text);
      includes_[path] = includes_of(code_[path]);
    }
    if (tree.contains(kDocs)) docs_ = tree.at(kDocs);
  }

  std::vector<std::string> messages() {
    check_includes();
    for (const auto& [path, code] : code_) {
      const fs::path file = path;
      if (file.parent_path().parent_path() == "kernels" && file.extension() == ".h") check_kernels(file);
      if (file.parent_path() == "layers/ops" && file.extension() == ".h") check_operators(file);
      if (file.parent_path() == "layers/operators" && file.extension() == ".cc") check_rows(path);
    }
    check_declared_rows();
    check_anchors();
    std::vector<std::string> messages;
    for (const auto& [file, reasons] : reasons_) {
      messages.push_back(file + ": ");
      for (const std::string& reason : reasons) {
        messages.back() += (&reason == &reasons.front() ? "" : "; ") + reason;
      }
    }
    return messages;
  }

 private:
  void report(const std::string& file, const std::string& reason) {
    std::vector<std::string>& reasons = reasons_[file];
    if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) reasons.push_back(reason);
  }

  // Whether `accept(path, code)` holds for a file whose path starts with `folder`.
  template <class Accept>
  bool any_file(const std::string& folder, const Accept& accept) const {
    return std::any_of(code_.begin(), code_.end(), [&](const auto& file) {
      return file.first.starts_with(folder) && accept(file.first, file.second);
    });
  }

  bool is_included(const std::string& header, const std::string& folder) const {
    return any_file(folder,
                    [&](const std::string& path, const std::string&) { return includes_.at(path).contains(header); });
  }

  void check_includes() {
    for (const auto& [path, includes] : includes_) {
      for (const std::string& include : includes) {
        const bool is_read = include.starts_with("kernels/") || include.starts_with("layers/");
        if (is_read && !code_.contains(include)) report(include, "does not exist, but " + path + " includes it");
      }
    }
  }

  // kernels/FAMILY/NAME.h
  void check_kernels(const fs::path& header) {
    const std::string family = header.parent_path(), name = header.stem();
    const std::string& code = code_.at(header);
    if (family == "kernels/common") return;  // where the macros are defined
    std::vector<std::string> missing[2];
    bool declares = false;
    for (const std::string macro : {"HEDDLE_KERNEL(", "HEDDLE_CPU_KERNEL(", "HEDDLE_CUDA_KERNEL("}) {
      for (const size_t at : places_of(code, macro)) {
        const std::string kernel = word_at(code, at + macro.size());
        declares = true;
        for (const bool cuda : {false, true}) {
          if (macro == (cuda ? "HEDDLE_CPU_KERNEL(" : "HEDDLE_CUDA_KERNEL(")) continue;
          const bool defined =
              any_file(family + (cuda ? "/cuda/" : "/cpu/"),
                       [&](const auto&, const std::string& text) { return defines(text, "void " + kernel + "("); });
          if (!defined) missing[cuda].push_back(kernel);
        }
      }
    }
    for (const bool cuda : {false, true}) {
      if (missing[cuda].empty()) continue;
      report(family + (cuda ? "/cuda/" : "/cpu/") + name + (cuda ? ".cu" : ".cc"),
             "define " + join(missing[cuda]) + ", which " + header.string() + " declares; a kernel " +
                 (cuda ? "of the CPU only is declared by HEDDLE_CPU_KERNEL" : "of GPUs only by HEDDLE_CUDA_KERNEL"));
    }
    if (declares && !is_included(header, "layers/ops/") && !is_included(header, "trainers/")) {
      const std::string op = "layers/ops/" + name;
      report(op + (code_.contains(op + ".h") ? ".cc" : ".h"),
             "nothing of layers/ops or trainers runs the kernels of " + header.string());
    }
  }

  // layers/ops/NAME.h: an operator where it declares a function on the tape and cites its section.
  void check_operators(const fs::path& header) {
    if (tree_.at(header).find(kDocs + "#") == std::string::npos) return;
    const std::string& code = code_.at(header);
    const std::string name = header.stem();
    std::vector<std::string> missing;
    bool is_operator = false;
    for (size_t at = code.find("(Tape& "); at != std::string::npos; at = code.find("(Tape& ", at + 1)) {
      size_t begin = at;
      while (begin > 0 && is_word(code[begin - 1])) --begin;
      const size_t line = code.rfind('\n', begin) + 1;
      if (!is_word(code[line]) || has_body(code, at)) continue;  // a member, or an inline function
      is_operator = true;
      const std::string function = code.substr(begin, at - begin);
      const bool defined = any_file("layers/ops/", [&](const std::string& path, const std::string& text) {
        return path.ends_with(".cc") && defines(text, function + "(Tape&");
      });
      if (!defined) missing.push_back(function + "()");
    }
    if (!missing.empty()) {
      report("layers/ops/" + name + ".cc", "define " + join(missing) + ", which " + header.string() + " declares");
    }
    if (is_operator && !is_row_of(header)) {
      report("layers/operators/" + name + ".cc",
             "no operator is made of " + header.string() + ": write its row with its cases and include it there");
    }
  }

  // Whether a file of layers/operators includes the header, or a module that includes it.
  bool is_row_of(const std::string& header) const {
    if (is_included(header, "layers/operators/")) return true;
    return any_file("layers/modules/", [&](const std::string& module, const std::string&) {
      return includes_.at(module).contains(header) && is_included(module, "layers/operators/");
    });
  }

  // Functions that return rows, `Operator NAME() {` or `std::vector<Operator> NAME() {`, in layers/operators/FILE.cc.
  void check_rows(const std::string& path) {
    const std::string& code = code_.at(path);
    for (const std::string type : {"\nOperator ", "\nstd::vector<Operator> "}) {
      for (const size_t at : places_of(code, type)) {
        const std::string row = word_at(code, at + type.size());
        const bool is_template = at > 0 && code[code.rfind('\n', at - 1) + 1] == 't' && code[at - 1] == '>';
        if (is_template || !has_body(code, at)) continue;
        defined_rows_.insert(row);
        if (!code_.contains(kRows) || !contains(code_.at(kRows), row + "()")) {
          report(kRows, "declare " + row + "(), which " + path + " defines");
        }
        check_added(row);
        check_documented(code, at, path);
      }
    }
  }

  void check_added(const std::string& row) {
    if (code_.contains(kRegistry) && contains(code_.at(kRegistry), row + "()")) return;
    report(kRegistry, "add " + row + "()");
  }

  // The name is the first that stands in the function, where it is written out there.
  void check_documented(const std::string& code, size_t function, const std::string& path) {
    const std::string key = ".name = ";
    const size_t at = code.find(key, function);
    if (at == std::string::npos || code[at + key.size()] != '"') return;
    const std::string name = word_at(code, at + key.size() + 1);
    if (!documents_operator(docs_, name)) report(kDocs, "write a section that starts with `" + name + "`, of " + path);
  }

  void check_declared_rows() {
    if (!code_.contains(kRows)) return;
    const std::string& code = code_.at(kRows);
    for (const std::string type : {"\nOperator ", "\nstd::vector<Operator> "}) {
      for (const size_t at : places_of(code, type)) {
        const std::string row = word_at(code, at + type.size());
        check_added(row);
        if (defined_rows_.contains(row)) continue;
        report("layers/operators/" + row.substr(0, row.rfind("_operator")) + ".cc",
               "define " + row + "(), which " + kRows + " declares");
      }
    }
  }

  void check_anchors() {
    const std::set<std::string> anchors = anchors_of(docs_);
    const std::string page = kDocs + "#";
    for (const auto& [path, text] : tree_) {
      if (path == kDocs) continue;
      for (size_t at = text.find(page); at != std::string::npos; at = text.find(page, at + 1)) {
        size_t end = at + page.size();
        while (end < text.size() && (is_word(text[end]) || text[end] == '-')) ++end;
        const std::string anchor = text.substr(at + page.size(), end - at - page.size());
        if (!anchors.contains(anchor))
          report(kDocs, "no heading has the anchor #" + anchor + ", which " + path + " cites");
      }
    }
  }

  const SourceTree& tree_;
  std::map<std::string, std::string> code_;  // without comments
  std::map<std::string, std::set<std::string>> includes_;
  std::string docs_;
  std::set<std::string> defined_rows_;
  std::map<std::string, std::vector<std::string>> reasons_;  // by the file to edit
};

}  // namespace

SourceTree read_source_tree(const fs::path& root) {
  SourceTree tree;
  const auto read = [&](const fs::path& file) {
    std::ostringstream text;
    text << std::ifstream(file).rdbuf();
    tree[file.lexically_relative(root)] = text.str();
  };
  for (const char* folder : {"kernels", "layers", "trainers"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh") read(entry.path());
    }
  }
  read(root / kDocs);
  return tree;
}

std::vector<std::string> forgotten_steps(const SourceTree& tree) { return Checker(tree).messages(); }
