// Lists of hosts as Slurm writes them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace heddle {

// The hosts of a list such as "node[01-03,7],login": node01, node02, node03, node7, login. Brackets may stand anywhere
// in a name, and several times in one; leading zeros are kept. Throws UsageError that shows the list when it cannot be
// read, or names more than 65536 hosts.
std::vector<std::string> expand_node_list(std::string_view list);

}  // namespace heddle
