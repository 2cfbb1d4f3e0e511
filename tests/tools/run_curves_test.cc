// `heddle plot` without the command line: what is read of metrics.csv, and what is drawn.
#include "tools/run_curves.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <clocale>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"
#include "tools/svg.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsNan;
using ::testing::Lt;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

class RunCurvesTest : public ::testing::Test {
 protected:
  fs::path write(const std::string& run, const std::string& text) const {
    fs::create_directories(folder_ / run);
    write_file(folder_ / run / "metrics.csv", text);
    return folder_ / run;
  }
  RunMetrics metrics(const std::string& run, const std::string& text) const { return read_metrics(write(run, text)); }

  testing::TempFolder folder_;
};

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// As in a program that takes the locale of its user and links heddle.
TEST_F(RunCurvesTest, ADecimalPointIsOneInEveryLocale) {
  const std::string name = folder_ / "de_DE.UTF-8";
  if (std::system(fmt::format("localedef -i de_DE -f UTF-8 '{}' > /dev/null 2>&1", name).c_str()) != 0) {
    GTEST_SKIP() << "no locale can be made here";
  }
  ::setenv("LOCPATH", folder_.path().c_str(), 1);
  const char* const found = std::setlocale(LC_NUMERIC, "de_DE.UTF-8");
  ::unsetenv("LOCPATH");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(std::strtod("2,5", nullptr), 2.5);
  const RunMetrics metrics_there = metrics("run", "step,loss\n1,2.5\n");
  std::setlocale(LC_NUMERIC, "C");
  EXPECT_THAT(metrics_there.column(1), ElementsAre(2.5));
}

TEST_F(RunCurvesTest, FieldsAreNumbersOrEmpty) {
  const RunMetrics found = metrics("run", "step,loss,x\n1,2.5,\n3,-1e-3,7\n4,1.0,8");
  EXPECT_THAT(found.columns, ElementsAre("step", "loss", "x"));
  ASSERT_EQ(found.rows.size(), 2u) << "a run may be writing the last line";
  EXPECT_THAT(found.rows[0], ElementsAre(1.0, 2.5, IsNan()));
  EXPECT_THAT(found.column(1), ElementsAre(2.5, -1e-3));
  EXPECT_EQ(read_metrics(folder_ / "run/metrics.csv").rows.size(), 2u);
}

TEST_F(RunCurvesTest, AFileMayBeWrittenByASpreadsheet) {
  const RunMetrics found = metrics("run", "\xef\xbb\xbfstep,loss\r\n1,2.5\r\n2,\r\n");
  EXPECT_THAT(found.columns, ElementsAre("step", "loss"));
  EXPECT_THAT(found.column(1), ElementsAre(2.5, IsNan()));
}

// A loss that was not finite is no damage, and nothing that could be drawn.
TEST_F(RunCurvesTest, FieldsMayBeNotFinite) {
  const std::vector<RunMetrics> runs = {metrics("run", "step,loss\n1,2.5\n2,nan\n3,inf\n4,2\n")};
  EXPECT_THAT(runs[0].column(1), ElementsAre(2.5, IsNan(), INFINITY, 2.0));
  EXPECT_THAT(curves_svg(runs, {.metrics = {"loss"}}), AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
}

TEST_F(RunCurvesTest, WhatIsNoRunIsRefused) {
  const auto reading = [](const fs::path& run) { return [run] { read_metrics(run); }; };
  EXPECT_THAT(reading(folder_ / "none"), ThrowsMessage<UsageError>(EndsWith("none: there is no such run folder")));
  EXPECT_THAT(reading(folder_.path()),
              ThrowsMessage<UsageError>(HasSubstr("holds no metrics.csv, expected the folder")));
  EXPECT_THAT(reading(write("empty", "step,loss\n")), ThrowsMessage<UsageError>(EndsWith("holds no step yet")));
  EXPECT_THAT(reading(write("nothing", "")), ThrowsMessage<UsageError>(EndsWith("holds no step yet")));
}

TEST_F(RunCurvesTest, APipeIsNotWaitedFor) {
  const fs::path file = folder_ / "metrics.csv";
  ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  EXPECT_THAT([&] { read_metrics(folder_.path()); },
              ThrowsMessage<Error>(file.string() + " is a pipe, expected a file"));
}

TEST_F(RunCurvesTest, DamageIsNamedByItsLine) {
  const auto reading = [&](const std::string& text) { return [run = write("run", text)] { read_metrics(run); }; };
  EXPECT_THAT(reading("a,b\n1,2\n"),
              ThrowsMessage<Error>(EndsWith("metrics.csv:1: found 'a', expected the name of the first column, step")));
  EXPECT_THAT(reading("step,b\n1,2\n2\n"), ThrowsMessage<Error>(EndsWith("metrics.csv:3: found 1 field, expected 2")));
  EXPECT_THAT(reading("step,b\n1,2x\n"),
              ThrowsMessage<Error>(EndsWith("metrics.csv:2: found '2x', expected a number in column b")));
  // What a file system leaves after a power failure.
  EXPECT_THAT(reading(std::string("step,b\n1,2\0\n", 13)),
              ThrowsMessage<Error>(HasSubstr("metrics.csv:2: found '2\\x00', expected a number")));
  EXPECT_THAT(reading(std::string("step,b\n1,\0\n", 12)), ThrowsMessage<Error>(EndsWith("a number in column b")));
  EXPECT_THAT(reading("step,b\n,2\n"), ThrowsMessage<Error>(EndsWith("metrics.csv:2: found '', expected a step")));
  EXPECT_THAT(
      reading("step,b\n2,2\n2,2\n"),
      ThrowsMessage<Error>(EndsWith("metrics.csv:3: found step 2, expected one after that of the line before")));
}

TEST_F(RunCurvesTest, AColumnThatIsNotThereIsNamedWithThoseThatAre) {
  const std::vector<RunMetrics> runs = {metrics("run", "step,loss\n1,2\n")};
  CurveOptions options;
  options.metrics = {"los"};
  EXPECT_THAT(
      [&] { curves_svg(runs, options); },
      ThrowsMessage<UsageError>(EndsWith("has no column 'los', expected one of step, loss; did you mean 'loss'?")));
}

// Points lie where the axes say, a run of its own has a color a metric, and rows without a value are left out.
TEST_F(RunCurvesTest, AChartOfOneRun) {
  const std::vector<RunMetrics> runs = {metrics("a<b", "step,tokens,loss,validation_loss\n1,1,4,\n2,3,2,3\n4,5,1,\n")};
  const std::string svg = curves_svg(runs, {.smooth = 1});
  EXPECT_THAT(svg, AllOf(StartsWith("<svg "), EndsWith("</svg>\n"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  EXPECT_THAT(svg, AllOf(HasSubstr(">a&lt;b loss</text>"), HasSubstr(">a&lt;b validation_loss</text>")));
  // x from 1 to 4 over 490 pixels, y from 1 - 0.12 to 4 + 0.12 over 320.
  EXPECT_THAT(svg, HasSubstr("<path d='M70.0 51.9L233.3 249.4L560.0 348.1' fill='none'"));
  EXPECT_EQ(count(svg, "<circle "), 4u);
  EXPECT_EQ(count(svg, svg_color(0)), 5u);  // the line, its entry in the legend, and three points
  EXPECT_EQ(count(svg, svg_color(1)), 3u);
  EXPECT_THAT(svg, AllOf(HasSubstr(">3</text>"), HasSubstr(">1.5</text>")));
  EXPECT_THAT(curves_svg(runs, {.x = "tokens", .smooth = 1}),
              HasSubstr("<path d='M70.0 51.9L315.0 249.4L560.0 348.1'"));
  EXPECT_THAT(curves_svg(runs, {.smooth = 1, .is_logarithmic = true}),
              HasSubstr("<path d='M70.0 40.0L233.3 200.0L560.0 360.0'"));
}

TEST_F(RunCurvesTest, RunsAreToldApartByColorAndMetricsByDashes) {
  const std::string text = "step,tokens,loss,validation_loss\n1,1,4,4\n2,3,2,3\n";
  const std::vector<RunMetrics> runs = {metrics("a", text), metrics("b", text)};
  const std::string svg = curves_svg(runs, {.smooth = 1});
  EXPECT_EQ(count(svg, "stroke-dasharray"), 4u);  // two lines, and their entries in the legend
  for (const char* label : {">a loss<", ">b loss<", ">a validation_loss<", ">b validation_loss<"}) {
    EXPECT_THAT(svg, HasSubstr(label));
  }
  EXPECT_EQ(count(svg, svg_color(0)), count(svg, svg_color(1)));
  EXPECT_EQ(count(svg, svg_color(2)), 0u);
  fs::create_directories(folder_ / "other");
  const std::vector<RunMetrics> alike = {metrics("x/run", text), metrics("y/run", text)};
  EXPECT_THAT(curves_text(alike, {}), AllOf(HasSubstr("x/run loss"), HasSubstr("y/run loss")));
}

// The mean of as many rows before as after; the rows themselves are pale.
TEST_F(RunCurvesTest, MeansAreDrawnOverTheRows) {
  const std::vector<RunMetrics> runs = {metrics("a", "step,loss\n1,0\n2,3\n3,0\n4,3\n5,6\n")};
  const std::string svg = curves_svg(runs, {.metrics = {"loss"}, .smooth = 3});
  const SvgAxis y{0, 6.24, kSvgBottom, kSvgTop};
  EXPECT_THAT(
      svg, HasSubstr(fmt::format("M70.0 {:.1f}L192.5 {:.1f}L315.0 {:.1f}L437.5 {:.1f}L560.0 {:.1f}' fill='none'", y(0),
                                 y(1), y(2), y(3), y(4.5))));
  EXPECT_EQ(count(svg, "opacity='0.3'"), 1u);
  EXPECT_EQ(count(svg, "<circle "), 0u);
}

// Of an even number of rows one more lies before.
TEST_F(RunCurvesTest, AnEvenNumberOfRowsIsAveragedToo) {
  const std::vector<RunMetrics> runs = {metrics("a", "step,loss\n1,0\n2,3\n3,1\n4,3\n5,6\n")};
  const SvgAxis y{0, 6.24, kSvgBottom, kSvgTop};
  const auto curve = [&](const std::vector<double>& means) {
    return fmt::format("M70.0 {:.1f}L192.5 {:.1f}L315.0 {:.1f}L437.5 {:.1f}L560.0 {:.1f}' fill='none'", y(means[0]),
                       y(means[1]), y(means[2]), y(means[3]), y(means[4]));
  };
  EXPECT_THAT(curves_svg(runs, {.metrics = {"loss"}, .smooth = 2}), HasSubstr(curve({0, 1.5, 2, 2, 4.5})));
  EXPECT_THAT(curves_svg(runs, {.metrics = {"loss"}, .smooth = 4}),
              HasSubstr(curve({0, 4.0 / 3, 7.0 / 4, 13.0 / 4, 10.0 / 3})));
}

// The mean of a window without the huge value is what it would be if that value were nowhere.
TEST_F(RunCurvesTest, AHugeValueIsInItsWindowsAlone) {
  std::string text = "step,loss\n";
  for (int step = 1; step <= 40; ++step) text += fmt::format("{},{}\n", step, step == 10 ? "1e25" : "2");
  const std::vector<RunMetrics> runs = {metrics("a", text)};
  const std::string svg = curves_svg(runs, {.metrics = {"loss"}, .smooth = 5, .is_logarithmic = true});
  EXPECT_THAT(svg, AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  const std::string mean = svg.substr(svg.find("<path d='M", svg.find("opacity='0.3'")));
  const std::string line = mean.substr(0, mean.find("' fill"));
  EXPECT_EQ(count(line, " 360.0"), 35u) << "a mean of 2, the lowest value, everywhere but in five windows: " << line;
}

// A label is cut between characters, and what is no UTF-8 is replaced.
TEST_F(RunCurvesTest, NamesOfAnyBytesMakeWellFormedText) {
  const std::string text = "step,loss\n1,4\n2,3\n", umlaut = "\xc3\xa4";
  std::string name = "a";
  for (int i = 0; i < 40; ++i) name += umlaut;
  const std::vector<RunMetrics> runs = {metrics(name, text), metrics("caf\xe9", text)};
  const std::string svg = curves_svg(runs, {.metrics = {"loss"}});
  std::string end;
  for (int i = 0; i < 27; ++i) end += umlaut;
  EXPECT_THAT(svg, HasSubstr(">.." + end + " loss</text>"));
  EXPECT_THAT(svg, HasSubstr(">caf\xef\xbf\xbd loss</text>"));
}

TEST(SvgEscapedTest, WhatXmlDoesNotAllowIsReplaced) {
  EXPECT_EQ(svg_escaped("a<b & \xc3\xa4\t"), "a&lt;b &amp; \xc3\xa4\t");
  for (const char* bad : {"\x1b", "\xe9", "\xef\xbf\xbf"}) EXPECT_EQ(svg_escaped(bad), "\xef\xbf\xbd");
}

// Of a long run the extremes are kept.
TEST_F(RunCurvesTest, ALongRunIsDrawnByFewPoints) {
  std::string text = "step,loss\n";
  for (int step = 1; step <= 100000; ++step) text += fmt::format("{},{}\n", step, step == 54321 ? 50 : step % 2);
  const std::vector<RunMetrics> runs = {metrics("a", text)};
  const std::string svg = curves_svg(runs, {.metrics = {"loss"}});
  EXPECT_LT(svg.size(), 60000u);
  EXPECT_THAT(svg, HasSubstr(" 52.3L")) << "the one high value, 4 % below the top";
}

TEST_F(RunCurvesTest, WhereThereIsNothingToDrawItIsSaid) {
  const std::vector<RunMetrics> runs = {metrics("a", "step,loss,x\n1,-1,\n2,0,\n")};
  EXPECT_THAT([&] { curves_svg(runs, {.metrics = {"x"}}); },
              ThrowsMessage<UsageError>(EndsWith("no run has a value of x")));
  EXPECT_THAT([&] { curves_svg(runs, {.metrics = {"loss"}, .is_logarithmic = true}); },
              ThrowsMessage<UsageError>(HasSubstr("loss above 0")));
  for (const char* only : {"0", "-2", "5"}) {  // one value alone makes an axis, too
    const std::vector<RunMetrics> one = {metrics("a", fmt::format("step,loss\n1,{}\n", only))};
    EXPECT_THAT(curves_svg(one, {.metrics = {"loss"}}), AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf")))) << only;
  }
}

TEST_F(RunCurvesTest, TheTableHasTheLastAndTheLowest) {
  const std::vector<RunMetrics> runs = {metrics("a", "step,loss,validation_loss\n1,4,\n20,1.5,3.25\n30,2,\n")};
  EXPECT_EQ(curves_text(runs, {}),
            "run                      last   at step      lowest   at step\n"
            "a loss                      2        30         1.5        20\n"
            "a validation_loss        3.25        20        3.25        20\n");
}

// Losses beyond what a float holds, and losses that differ by rounding alone, have a place on the axis, too.
TEST_F(RunCurvesTest, ExtremeLossesAreDrawn) {
  for (const char* losses : {"1.7e308,-1.7e308", "1.7e308,1.7e308", "2.3,2.3000000000000003", "1e300,1e-300"}) {
    const std::string text = losses;
    const size_t comma = text.find(',');
    const std::vector<RunMetrics> runs = {
        metrics("a", "step,loss\n1," + text.substr(0, comma) + "\n2," + text.substr(comma + 1) + "\n")};
    for (const int smooth : {1, 2}) {
      EXPECT_THAT(curves_svg(runs, {.metrics = {"loss"}, .smooth = smooth}),
                  AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf"))))
          << losses;
    }
  }
  const std::vector<RunMetrics> runs = {metrics("a", "step,loss\n1,5e-324\n2,1e308\n")};
  EXPECT_THAT(curves_svg(runs, {.metrics = {"loss"}, .is_logarithmic = true}), Not(HasSubstr("inf")));
  EXPECT_THAT(curves_text(runs, {.metrics = {"loss"}}),
              HasSubstr("a loss      1e+308         2 4.94066e-324         1"));
}

std::vector<double> values_of(const std::vector<SvgTick>& ticks) {
  std::vector<double> values;
  for (const SvgTick& tick : ticks) values.push_back(tick.value);
  return values;
}

std::vector<std::string> labels_of(const std::vector<SvgTick>& ticks) {
  std::vector<std::string> labels;
  for (const SvgTick& tick : ticks) labels.push_back(tick.label);
  return labels;
}

TEST(SvgTicksTest, AreRoundNumbers) {
  EXPECT_THAT(values_of(svg_ticks({0, 10, 0, 1}, 5)), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(values_of(svg_ticks({1, 1200, 0, 1}, 6)), ElementsAre(200, 400, 600, 800, 1000, 1200));
  EXPECT_THAT(values_of(svg_ticks({2, 30, 0, 1, true}, 5)), ElementsAre(2, 5, 10, 20));
  EXPECT_THAT(values_of(svg_ticks({2, 6, 0, 1, true}, 4)), ElementsAre(2, 3, 4, 5, 6));
  EXPECT_THAT(values_of(svg_ticks({2, 3000, 0, 1, true}, 5)), ElementsAre(10, 100, 1000));
  EXPECT_EQ(svg_number(0.25), "0.25");
  EXPECT_EQ(svg_number(0), "0");
  EXPECT_EQ(svg_number(9999), "9999");
  EXPECT_EQ(svg_number(20000), "20k");
  EXPECT_EQ(svg_number(1.5e6), "1.5M");
  EXPECT_EQ(svg_number(-2e9), "-2G");
}

TEST(SvgTicksTest, LabelsOfANarrowAxisDiffer) {
  EXPECT_THAT(labels_of(svg_ticks({2.31, 2.3104, 0, 1}, 4)),
              ElementsAre("2.31", "2.3101", "2.3102", "2.3103", "2.3104"));
  EXPECT_THAT(labels_of(svg_ticks({-1, 1, 0, 1}, 4)), ElementsAre("-1", "-0.5", "0", "0.5", "1"));
  EXPECT_THAT(labels_of(svg_ticks({1000000, 1000400, 0, 1}, 4)),
              ElementsAre("1M", "1.0001M", "1.0002M", "1.0003M", "1.0004M"));
}

TEST(SvgTicksTest, AreFewOnAnyAxis) {
  const double next = std::nextafter(2.31, 3);
  EXPECT_THAT(values_of(svg_ticks({2.31, next, 0, 1}, 6)), ElementsAre(2.31));
  EXPECT_THAT(values_of(svg_ticks({2.31, next, 0, 1, true}, 6)), ElementsAre(2.31));
  EXPECT_THAT(values_of(svg_ticks({0x1p60, 0x1p60 + 1024, 0, 1}, 6)), ElementsAre(0x1p60));
  EXPECT_THAT(svg_ticks({-1.7e308, 1.7e308, 0, 1}, 6), SizeIs(7));
  EXPECT_THAT(svg_ticks({1e-300, 1e300, 0, 1, true}, 6), SizeIs(Lt(25)));
}

// Between two powers of ten, too.
TEST(SvgLinesTest, TheAxisOfValuesHasLabels) {
  const SvgLine line{.label = "", .points = {{8, 1.2}, {16, 3.4}}};
  EXPECT_THAT(svg_lines("title", "n", "ms", std::vector<SvgLine>{line}),
              AllOf(HasSubstr(">2</text>"), HasSubstr(">3</text>")));
  const SvgLine point{.label = "", .points = {{8, 2.5}}};
  EXPECT_THAT(svg_lines("title", "n", "ms", std::vector<SvgLine>{point}), HasSubstr(">2.5</text>"));
}

}  // namespace
}  // namespace heddle
