// Options of subcommands whose values are numbers or names. They are read as values of a config are, with the same
// ranges and the same words in errors: "--tokens: found '-1', expected an integer >= 0".
//
// What a value is written to must live as long as the command; it keeps its default when the option is not given.
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_node.h"

namespace heddle::cli {

// One number.
template <ConfigScalar T>
CLI::Option* add_number(CLI::App& command, const std::string& name, T& value, const std::string& description,
                        const Range& range = {});

// Numbers between commas, each of them once.
CLI::Option* add_numbers(CLI::App& command, const std::string& name, std::vector<int64_t>& values,
                         const std::string& description, const Range& range = {});

// A number of bytes: "80GiB", "24 GB", "512MiB", "1000000".
CLI::Option* add_bytes(CLI::App& command, const std::string& name, size_t& value, const std::string& description);

// --set KEY=VALUE, repeatable: overrides of a config, whose example is such an override.
CLI::Option* add_overrides(CLI::App& command, std::vector<std::string>& overrides, const std::string& example);

// Refuses "" as the value of an option: "--resume: found '', expected WHAT". Shells give it for a variable without a
// value.
CLI::Option* refuse_empty(CLI::Option* option, const std::string& what);

// The path of a file or folder, which "" is not.
template <class Value>
CLI::Option* add_path(CLI::App& command, const std::string& name, Value& value, const std::string& description) {
  return refuse_empty(command.add_option(name, value, description), "a path");
}

// The path of a file that is written; "-" is stdout.
CLI::Option* add_output(CLI::App& command, const std::string& name, std::string& path, const std::string& description);

// Lets an option, whose values are paths of configs, also find those that came with the program.
CLI::Option* find_shared_configs(CLI::Option* option);
// The same, where a run folder stands for the config.yaml in it. `others`: values that are no paths.
CLI::Option* find_configs_and_runs(CLI::Option* option, std::vector<std::string> others = {});

// The parts of "a,b,c".
std::vector<std::string> split_at_commas(const std::string& text);

// The same of the value of the option `name`. Throws CLI::ValidationError when two parts are equal.
std::vector<std::string> parts_given_once(const std::string& name, const std::string& text);

// Throws CLI::ValidationError "NAME: found 'FOUND', expected one of ..., did you mean ...?".
[[noreturn]] void fail_unknown_name(const std::string& name, const std::string& found,
                                    const std::vector<std::string>& expected);

// The value that `text`, given to the option `name`, names.
template <class E>
E choice_of(const std::string& name, const std::string& text, const Choices<E>& choices) {
  for (const auto& [known, value] : choices) {
    if (known == text) return value;
  }
  fail_unknown_name(name, text, names_of(choices));
}

// One name of a list, or several between commas.
template <class E, class Value>
CLI::Option* add_choice(CLI::App& command, const std::string& name, Value& value, const std::string& description,
                        const Choices<E>& choices) {
  return command.add_option_function<std::string>(
      name, [&value, name, choices](const std::string& text) { value = choice_of(name, text, choices); }, description);
}
template <class E>
CLI::Option* add_choices(CLI::App& command, const std::string& name, std::vector<E>& values,
                         const std::string& description, const Choices<E>& choices) {
  return command.add_option_function<std::string>(
      name,
      [&values, name, choices](const std::string& text) {
        values.clear();
        for (const std::string& part : parts_given_once(name, text)) values.push_back(choice_of(name, part, choices));
      },
      description);
}

}  // namespace heddle::cli
