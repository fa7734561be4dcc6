#include "line_input.h"

#include <histedit.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <iostream>

namespace pronghorn::app {
namespace {

constexpr int kHistory = 1000;

}  // namespace

struct LineInput::Editor {
  Editor() : history(::history_init()), line(::el_init("pronghorn", stdin, stdout, stderr)) {
    HistEvent event;
    ::history(history, &event, H_SETSIZE, kHistory);
    ::el_set(line, EL_CLIENTDATA, this);
    ::el_set(line, EL_PROMPT, &Editor::show_prompt);
    ::el_set(line, EL_EDITOR, "emacs");
    ::el_set(line, EL_HIST, ::history, history);
  }
  ~Editor() {
    ::el_end(line);
    ::history_end(history);
  }
  Editor(const Editor&) = delete;
  Editor& operator=(const Editor&) = delete;

  static char* show_prompt(EditLine* line) {
    void* editor = nullptr;
    ::el_get(line, EL_CLIENTDATA, &editor);
    return static_cast<Editor*>(editor)->prompt.data();
  }

  History* history;
  EditLine* line;
  std::string prompt;
};

LineInput::LineInput(bool editing) {
  if (!editing) return;
  std::setlocale(LC_CTYPE, "");  // characters of more than one byte
  editor_ = std::make_unique<Editor>();
}

LineInput::~LineInput() = default;

std::optional<std::string> LineInput::next(const std::string& prompt) {
  interrupted_ = false;
  if (editor_ == nullptr) {
    std::string line;
    if (!std::getline(std::cin, line)) return {};
    if (line.ends_with('\r')) line.pop_back();
    return line;
  }
  editor_->prompt = prompt;
  int count = 0;
  errno = 0;
  const char* const text = ::el_gets(editor_->line, &count);
  if (text == nullptr || count <= 0) {
    interrupted_ = errno == EINTR;
    if (interrupted_) {
      ::el_reset(editor_->line);
      std::fputs("\n", stdout);
      std::fflush(stdout);
    }
    return {};
  }
  std::string line(text, static_cast<size_t>(count));
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  if (!line.empty()) {
    HistEvent event;
    ::history(editor_->history, &event, H_ENTER, line.c_str());
  }
  return line;
}

}  // namespace pronghorn::app
