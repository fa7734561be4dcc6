// Which architecture wins on a text: trains several for a time, measures them, writes a report.
//
//   compare TEXT_FILE DIR SECONDS CONFIG...
#include <pronghorn/pronghorn.h>

#include <cstdlib>
#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc < 5) {
    std::cerr << "usage: compare TEXT_FILE DIR SECONDS CONFIG...\n";
    return 2;
  }
  pronghorn::ComparisonOptions options;
  options.data = {argv[1]};
  options.directory = argv[2];
  options.seconds = std::atof(argv[3]);
  options.configs.assign(argv + 4, argv + argc);
  options.vocab_size = 0;  // bytes
  options.contexts = {128, 1024};
  options.settings = R"({"window": 128, "batch_tokens": 1024})";
  pronghorn::show_messages(true);
  const std::string results = pronghorn::compare(options);  // JSON; here it is only measured
  std::cout << results.size() << " bytes of results, and "
            << (options.directory / "report.html").string() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "compare: " << error.what() << "\n";
  return 1;
}
