// The chart and the trace of a training step.
#include "tools/memory_timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "tests/trainers/test_config.h"
#include "tools/training_memory.h"

namespace heddle {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;
using ::testing::StartsWith;

const MemoryReport& report_on(DeviceType device) {
  static std::map<DeviceType, MemoryReport> reports;
  const auto [place, is_new] = reports.try_emplace(device);
  if (is_new) place->second = measure_training({device}, testing::tiny_train_config(), 1).report;
  return place->second;
}

TEST(MemoryTimelineTest, TheChartHasAnAreaForEachCategory) {
  const std::string svg = timeline_svg(report_on(DeviceType::meta), "a <title> & more");
  EXPECT_THAT(svg, StartsWith("<svg "));
  EXPECT_THAT(svg, EndsWith("</svg>\n"));
  EXPECT_THAT(svg, HasSubstr("a &lt;title> &amp; more"));
  for (const char* category : {"parameter", "gradient", "optimizer", "activation", "data"}) {
    EXPECT_THAT(svg, HasSubstr(std::string(">") + category + "</text>"));
  }
  EXPECT_THAT(svg, Not(HasSubstr(">other</text>")));
  EXPECT_THAT(svg, HasSubstr(" 40.0L")) << "the peak reaches the top";
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(timeline_svg(measure_memory({DeviceType::meta}, [](Context&) {}), "nothing"), Not(HasSubstr("nan")));
}

TEST(MemoryTimelineTest, TheTraceHasLayersPhasesAndCounters) {
  for (const DeviceType device : {DeviceType::meta, DeviceType::cpu}) {
    const MemoryReport& report = report_on(device);
    const nlohmann::json trace = nlohmann::json::parse(timeline_trace(report));
    std::map<int, std::vector<std::string>> open;  // by row
    std::set<std::string> paths, phases;
    double time = 0;
    size_t most = 0, last = 0;
    for (const nlohmann::json& event : trace["traceEvents"]) {
      const std::string kind = event["ph"];
      if (kind == "M") continue;
      EXPECT_GE(event["ts"].get<double>(), time);
      time = event["ts"];
      if (kind == "B") {
        std::vector<std::string>& row = open[event["tid"]];
        row.push_back(event["name"]);
        std::string path;
        for (const std::string& part : row) path += (path.empty() ? "" : ".") + part;
        (event["tid"] == 1 ? phases : paths).insert(path);
      } else if (kind == "E") {
        ASSERT_FALSE(open[event["tid"]].empty());
        open[event["tid"]].pop_back();
      } else {
        ASSERT_EQ(kind, "C");
        last = 0;
        for (const nlohmann::json& bytes : event["args"]) last += bytes.get<size_t>();
        most = std::max(most, last);
      }
    }
    for (const auto& [row, slices] : open) EXPECT_TRUE(slices.empty()) << row;
    EXPECT_EQ(most, report.stats.allocated.peak);
    EXPECT_EQ(last, report.stats.allocated.current);
    EXPECT_THAT(phases, ::testing::ElementsAre("backward", "forward", "optimizer"));
    EXPECT_THAT(paths, IsSupersetOf({"embedding", "blocks.0.mixer_norm", "blocks.1.channel", "head", "loss"}));
  }
}

}  // namespace
}  // namespace heddle
