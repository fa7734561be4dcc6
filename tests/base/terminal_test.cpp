// What counts as a terminal, and what may be sent to it.
#include "base/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <optional>
#include <string>

namespace pronghorn {
namespace {

// A variable of the environment while it lives; null: there is none.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* const before = ::getenv(name)) before_ = before;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) const {
    if (value != nullptr) {
      ::setenv(name_, value, 1);
    } else {
      ::unsetenv(name_);
    }
  }

  const char* name_;
  std::optional<std::string> before_;
};

class TerminalTest : public testing::Test {
 protected:
  void SetUp() override {
    master_ = ::posix_openpt(O_RDWR | O_NOCTTY);
    ASSERT_GE(master_, 0);
    ASSERT_EQ(::grantpt(master_), 0);
    ASSERT_EQ(::unlockpt(master_), 0);
    terminal_ = ::open(::ptsname(master_), O_RDWR | O_NOCTTY);
    ASSERT_GE(terminal_, 0);
  }
  void TearDown() override {
    if (terminal_ >= 0) ::close(terminal_);
    if (master_ >= 0) ::close(master_);
  }

  Variable no_mpirun_{"OMPI_COMM_WORLD_SIZE", nullptr}, term_{"TERM", "xterm-256color"},
      no_color_{"NO_COLOR", nullptr};
  int master_ = -1, terminal_ = -1;
};

TEST_F(TerminalTest, ShowsStyles) {
  EXPECT_TRUE(is_terminal(terminal_));
  EXPECT_TRUE(terminal_obeys(terminal_));
  EXPECT_TRUE(terminal_shows_styles(terminal_));
  const Variable empty("NO_COLOR", "");
  EXPECT_TRUE(terminal_shows_styles(terminal_));
}

TEST_F(TerminalTest, NoColorLeavesTheBars) {
  const Variable no_color("NO_COLOR", "1");
  EXPECT_TRUE(terminal_obeys(terminal_));
  EXPECT_FALSE(terminal_shows_styles(terminal_));
}

TEST_F(TerminalTest, DumbOnesGetNoSequences) {
  for (const char* term : {"dumb", "", static_cast<const char*>(nullptr)}) {
    const Variable kind("TERM", term);
    EXPECT_TRUE(is_terminal(terminal_));
    EXPECT_FALSE(terminal_obeys(terminal_));
    EXPECT_FALSE(terminal_shows_styles(terminal_));
  }
}

TEST_F(TerminalTest, FilesAndThoseOfMpirunAreNone) {
  const int file = ::open("/dev/null", O_WRONLY);
  EXPECT_FALSE(is_terminal(file));
  EXPECT_FALSE(terminal_obeys(file));
  ::close(file);
  // Even of one process.
  for (const char* count : {"1", "4"}) {
    const Variable by_mpirun("OMPI_COMM_WORLD_SIZE", count);
    EXPECT_FALSE(is_terminal(terminal_));
    EXPECT_FALSE(terminal_obeys(terminal_));
    EXPECT_FALSE(terminal_shows_styles(terminal_));
  }
}

}  // namespace
}  // namespace pronghorn
