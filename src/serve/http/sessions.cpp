// POST /v1/sessions/save, /restore, /list and /delete: states of texts in files, for another day or
// another server.
#include <algorithm>
#include <chrono>
#include <map>

#include "base/files.h"
#include "base/log.h"
#include "serve/http/api_error.h"
#include "serve/http/chat_run.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"
#include "serve/http/text_fields.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

constexpr size_t kLongestName = 64;
constexpr std::string_view kEnding = ".session";

// Whether it names a file of its folder and nothing else.
bool is_session_name(std::string_view name) {
  return !name.empty() && name.size() <= kLongestName && name.front() != '.' &&
         std::ranges::all_of(name, [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' ||
                  c == '.';
         });
}

// Where the sessions are, apart for each key and model.
std::filesystem::path session_folder(const Service& service, const Call& call,
                                     const ServedModel& model) {
  if (service.options.session_directory.empty()) {
    throw ApiError(400, "no_session_directory",
                   "this server keeps no sessions (see --session-dir)");
  }
  std::string model_name;
  for (const char c : model.name) {
    model_name +=
        std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' ? c : '_';
  }
  std::filesystem::path folder = service.options.session_directory;
  if (!call.tenant.empty()) folder /= call.tenant.substr(0, call.tenant.size() - 1);
  return folder / model_name;
}

std::filesystem::path session_file(const Service& service, const Call& call,
                                   const ServedModel& model, Fields& fields) {
  const std::filesystem::path folder = session_folder(service, call, model);
  const std::string name = fields.text("name");
  if (!is_session_name(name)) {
    refuse_field("name",
                 fmt::format("must be 1 to {} letters, digits, '-', '_' and '.', the first no '.'",
                             kLongestName));
  }
  return folder / (name + std::string(kEnding));
}

[[noreturn]] void refuse_missing(Fields& fields) {
  throw ApiError(404, "session_not_found", "there is no session " + shown(fields.text("name")),
                 "name");
}

// What is read of a prompt or of the messages of a chat, up to where an answer would begin.
ChatPrompt read_session_text(const ServedModel& model, Fields& fields, const Call& call) {
  if (fields.has("messages")) {
    if (fields.has("prompt")) {
      refuse_field("prompt", "cannot be given together with messages: a session keeps one text");
    }
    Chat chat = read_chat(fields);
    read_reasoning(fields, model, chat);
    if (chat.image != nullptr) {
      throw ApiError(400, "unsupported_content",
                     "a session keeps no image: states behind one are not kept", chat.image_path);
    }
    return chat_prompt(model, chat, call.client_is_gone);
  }
  ChatPrompt prompt;
  prompt.text = fields.text("prompt");
  prompt.tokens =
      model.tokenizer->encode(prompt.text, {.add_special = true, .parse_special = true});
  if (prompt.tokens.empty()) refuse_field("prompt", "is empty");
  check_fits(model, static_cast<int64_t>(prompt.tokens.size()), 1);
  return prompt;
}

// Of a chat the state at the end of its last message: what comes behind it is the beginning of an
// answer, with which the next turn does not go on.
size_t kept_length(const ChatPrompt& prompt) {
  return prompt.message_ends.empty() ? prompt.tokens.size()
                                     : static_cast<size_t>(prompt.message_ends.back());
}

// Lets the model read what it has not read, and keep its state there.
void read_text(Service& service, const std::shared_ptr<ServedModel>& model, Call& call,
               const ChatPrompt& prompt, const std::string& salt) {
  TextRequest request;
  request.prompt = prompt.tokens;
  request.message_ends = prompt.message_ends;
  if (request.message_ends.empty() ||
      request.message_ends.back() < static_cast<int64_t>(prompt.tokens.size())) {
    request.message_ends.push_back(static_cast<int64_t>(prompt.tokens.size()));
  }
  request.answers = prompt.answers;
  request.options.max_tokens = 1;
  request.cache_salt = salt;
  TextRun run(service, model, call);
  run.submit(std::move(request));
  while (run.next()) {
  }
}

}  // namespace

Reply save_session(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const std::filesystem::path file = session_file(service, call, *model, fields);
  const std::string salt = fields.text("cache_salt", "");
  const ChatPrompt prompt = read_session_text(*model, fields, call);
  read_text(service, model, call, prompt, salt);
  // The state is copied between two steps, written here, and let go between two steps.
  std::optional<KeptState> kept;
  uint64_t fingerprint = 0;
  const std::span<const int32_t> text = std::span(prompt.tokens).first(kept_length(prompt));
  service.stepper.run([&] {
    kept = model->engine->kept(call.tenant + salt, text, prompt.message_ends, prompt.answers);
    fingerprint = model->engine->kept_state_form().fingerprint;
    return false;
  });
  if (!kept) {
    throw ApiError(409, "nothing_kept",
                   "no state of this text is kept: the cache is off, or smaller than the state");
  }
  const int64_t tokens = kept->state.length();
  const auto let_go = [&] {
    service.stepper.run([&] {
      kept.reset();
      return false;
    });
  };
  int64_t bytes = 0;
  try {
    const std::string head = kept_state_head(fingerprint, kept->salt, kept->pieces);
    const std::string state = kept->state.save();
    bytes = static_cast<int64_t>(head.size() + state.size());
    std::filesystem::create_directories(file.parent_path());
    AtomicFile out(file);
    out.write(head);
    out.write(state);
    out.commit();
  } catch (...) {
    let_go();
    throw;
  }
  let_go();
  return with_ignored({{"object", "session"},
                       {"name", fields.text("name")},
                       {"model", model->name},
                       {"tokens", tokens},
                       {"bytes", bytes}},
                      fields);
}

Reply restore_session(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const std::filesystem::path file = session_file(service, call, *model, fields);
  if (!std::filesystem::exists(file)) refuse_missing(fields);
  KeptStateForm form;
  service.stepper.run([&] {
    form = model->engine->kept_state_form();
    return false;
  });
  std::optional<KeptState> kept;
  try {
    kept = read_kept_state(file, form);
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
    throw ApiError(409, "session_mismatch",
                   "the session is damaged, or of another model or another way to run it", "name");
  }
  if (!kept->salt.starts_with(call.tenant)) {
    throw ApiError(409, "session_mismatch", "the session is another key's", "name");
  }
  const int64_t tokens = kept->state.length();
  bool fits = false;
  service.stepper.run([&] {
    fits = model->engine->keep(*kept);
    kept.reset();
    return false;
  });
  if (!fits) {
    throw ApiError(409, "nothing_kept",
                   "the cache is off, or has no room for the session (see --cache-bytes)");
  }
  return with_ignored({{"object", "session"},
                       {"name", fields.text("name")},
                       {"model", model->name},
                       {"tokens", tokens},
                       {"bytes", static_cast<int64_t>(std::filesystem::file_size(file))}},
                      fields);
}

Reply list_sessions(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const std::filesystem::path folder = session_folder(service, call, *model);
  std::map<std::string, json> sessions;  // by name
  std::error_code none;                  // without the folder there are none
  for (std::filesystem::directory_iterator entry(folder, none), end; entry != end && !none;
       entry.increment(none)) {
    const std::filesystem::path& file = entry->path();
    const std::string name = file.stem().string();
    if (file.extension() != kEnding || !is_session_name(name)) continue;
    std::error_code gone;  // deleted meanwhile
    const auto bytes = std::filesystem::file_size(file, gone);
    const auto written =
        gone ? std::filesystem::file_time_type() : std::filesystem::last_write_time(file, gone);
    if (gone) continue;
    const auto since = std::chrono::file_clock::to_sys(written).time_since_epoch();
    sessions[name] = {{"object", "session"},
                      {"name", name},
                      {"model", model->name},
                      {"created", std::chrono::duration_cast<std::chrono::seconds>(since).count()},
                      {"bytes", bytes}};
  }
  json list = json::array();
  for (auto& [name, session] : sessions) list.push_back(std::move(session));
  return with_ignored({{"object", "list"}, {"data", list}}, fields);
}

Reply delete_session(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const std::filesystem::path file = session_file(service, call, *model, fields);
  if (!std::filesystem::remove(file)) refuse_missing(fields);
  return with_ignored({{"object", "session"},
                       {"name", fields.text("name")},
                       {"model", model->name},
                       {"deleted", true}},
                      fields);
}

}  // namespace pronghorn::serve
