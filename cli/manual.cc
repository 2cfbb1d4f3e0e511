#include "cli/manual.h"

#include <fmt/format.h>

#include <cstddef>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "cli/command.h"

namespace heddle::cli {
namespace {

constexpr size_t kColumns = 100;

class ManualFormatter : public CLI::Formatter {
 public:
  explicit ManualFormatter(Manual manual) : manual_(std::move(manual)) {}

  std::string make_description(const CLI::App* app) const override {
    return fmt::format("heddle {}: {}\n\n{}\n", app->get_name(), app->get_description(),
                       wrapped(manual_.description, 0));
  }

  // In the order of CLI11, whose versions do not agree on the empty line before the end.
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    if (mode == CLI::AppFormatMode::Sub) return CLI::Formatter::make_help(app, std::move(name), mode);
    return make_description(app) + make_usage(app, std::move(name)) + make_positionals(app) + make_groups(app, mode) +
           make_subcommands(app, mode) + "\n" + make_footer(app);
  }

  std::string make_footer(const CLI::App*) const override {
    std::string text = "Examples:\n";
    for (const auto& [command, effect] : manual_.examples) text += fmt::format("  {}\n{}", command, wrapped(effect, 6));
    std::map<int, std::string> codes = {
        {kDone, "done"}, {kFailed, "failure at run time"}, {kUsage, "wrong usage or configuration"}};
    for (const auto& [code, meaning] : manual_.exit_codes) codes[code] = meaning;
    text += "\nExit codes:\n";
    for (const auto& [code, meaning] : codes) text += fmt::format("  {:<3}  {}\n", code, meaning);
    return text + fmt::format("\nSee also: {}\n", manual_.page);
  }

 private:
  Manual manual_;
};

}  // namespace

void set_manual(CLI::App& command, Manual manual) {
  command.formatter(std::make_shared<ManualFormatter>(std::move(manual)));
}

std::string wrapped(const std::string& text, size_t indent) {
  std::istringstream lines(text);
  std::string result;
  for (std::string paragraph; std::getline(lines, paragraph);) {
    std::istringstream words(paragraph);
    std::string line(indent, ' ');
    for (std::string word; words >> word;) {
      if (line.size() > indent && line.size() + 1 + word.size() > kColumns) {
        result += line + "\n";
        line.assign(indent, ' ');
      }
      if (line.size() > indent) line += ' ';
      line += word;
    }
    result += line + "\n";
  }
  return result;
}

}  // namespace heddle::cli
