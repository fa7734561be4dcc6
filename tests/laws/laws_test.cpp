// The five laws over the table of operators, a test for each law, case and instruction set of this
// machine (Laws/Split.attention_gqa__avx512), and the laws themselves against known faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "backend/cpu/cpu_features.h"
#include "laws/cumulative_sum.h"
#include "laws/laws.h"
#include "support/machine.h"

namespace pronghorn::laws {
namespace {

class LawTest : public testing::Test {
 public:
  LawTest(const Law& law, std::shared_ptr<const Subject> subject, std::string instruction_set)
      : law_(law), subject_(std::move(subject)), instruction_set_(std::move(instruction_set)) {}

  void TestBody() override {
    const testing_support::InstructionSet scope(instruction_set_);
    const Findings findings = check(law_.name, *subject_);
    for (const std::string& message : findings.messages()) {
      ADD_FAILURE() << law_.name << ", " << subject_->spec().name << " on " << instruction_set_
                    << ": " << message;
    }
  }

 private:
  const Law& law_;
  std::shared_ptr<const Subject> subject_;
  std::string instruction_set_;
};

std::vector<OperatorCase> table() {
  std::vector<OperatorCase> cases;
  const auto add = [&](std::vector<OperatorCase> more) {
    std::move(more.begin(), more.end(), std::back_inserter(cases));
  };
#define CASES(function) add(function());
#include "laws/case_list.inc"
#undef CASES
  return cases;
}

void register_laws() {
  for (OperatorCase& spec : table()) {
    const auto subject = std::make_shared<const Subject>(std::move(spec));
    for (const std::string& set : cpu_instruction_sets()) {
      std::string name = subject->spec().name + "__" + set;
      std::replace(name.begin(), name.end(), '-', '_');
      for (const Law& law : laws()) {
        testing::RegisterTest(
            (std::string("Laws/") + law.name).c_str(), name.c_str(), nullptr, nullptr, __FILE__,
            __LINE__,
            [&law, subject, set]() -> testing::Test* { return new LawTest(law, subject, set); });
      }
    }
  }
}

// The laws that an operator with this fault breaks.
std::vector<std::string> broken_laws(Fault fault) {
  const Subject subject(cumulative_sum(fault));
  std::vector<std::string> broken;
  for (const Law& law : laws()) {
    if (!check(law.name, subject).empty()) broken.push_back(law.name);
  }
  return broken;
}

using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;

TEST(LawsThemselves, HoldForASoundOperator) { EXPECT_THAT(broken_laws(Fault::none), IsEmpty()); }

TEST(LawsThemselves, CatchADependenceOnTheCut) {
  EXPECT_THAT(broken_laws(Fault::cut), Contains("Split"));
}

TEST(LawsThemselves, CatchALongStepThatForgetsTheState) {
  EXPECT_THAT(broken_laws(Fault::long_chunk), Contains("Split"));
}

TEST(LawsThemselves, CatchADependenceOnTheNeighbour) {
  EXPECT_THAT(broken_laws(Fault::neighbour), Contains("Batch"));
}

TEST(LawsThemselves, CatchADependenceOnThreads) {
  const auto broken = broken_laws(Fault::threads);
  EXPECT_THAT(broken, Contains("Batch"));
  EXPECT_THAT(broken, Contains("Reference"));
  EXPECT_THAT(broken, Contains("Gradient"));
}

TEST(LawsThemselves, CatchWritesToRowsOfAMark) {
  const auto broken = broken_laws(Fault::marks);
  EXPECT_THAT(broken, Contains("Rollback"));
  EXPECT_THAT(broken, Contains("Truncate"));
  EXPECT_THAT(broken, Contains("Tree"));
}

TEST(LawsThemselves, CatchAStateThatIsNotSaved) {
  EXPECT_THAT(broken_laws(Fault::hidden_state), Contains("Save"));
}

TEST(LawsThemselves, CatchAMissingAnchorToTruncateTo) {
  EXPECT_THAT(broken_laws(Fault::no_way_back), ElementsAre("Truncate", "Save"));
}

TEST(LawsThemselves, CatchATreeTakenForAChain) {
  EXPECT_THAT(broken_laws(Fault::tree_as_chain), ElementsAre("Tree"));
}

TEST(LawsThemselves, CatchATreeThatGoesWrongOverAFold) {
  EXPECT_THAT(broken_laws(Fault::tree_fold), ElementsAre("Tree"));
}

TEST(LawsThemselves, CatchWrongGradients) {
  EXPECT_THAT(broken_laws(Fault::input_gradient), ElementsAre("Gradient"));
  EXPECT_THAT(broken_laws(Fault::parameter_gradient), ElementsAre("Gradient"));
  EXPECT_THAT(broken_laws(Fault::gradient_threads), ElementsAre("Gradient"));
}

TEST(LawsThemselves, CatchWrongValues) {
  EXPECT_THAT(broken_laws(Fault::values), ElementsAre("Reference"));
  EXPECT_THAT(broken_laws(Fault::positions), Contains("Reference"));
}

TEST(LawsThemselves, CatchBreachesOfTheContract) {
  EXPECT_THAT(broken_laws(Fault::strides), ElementsAre("Contract"));
  EXPECT_THAT(broken_laws(Fault::added_gradient), ElementsAre("Contract"));
  EXPECT_THAT(broken_laws(Fault::unwanted_gradient), ElementsAre("Contract"));
  EXPECT_THAT(broken_laws(Fault::writes_input), Contains("Contract"));
  EXPECT_THAT(broken_laws(Fault::tape_and_state), ElementsAre("Contract"));
}

}  // namespace
}  // namespace pronghorn::laws

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  pronghorn::laws::register_laws();
  return RUN_ALL_TESTS();
}
