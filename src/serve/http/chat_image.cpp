#include "serve/http/chat_image.h"

#include <algorithm>

#include "base/base64.h"
#include "base/error.h"
#include "decode/session.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

bool is_image_part(const Json& part) {
  if (!part.is_object()) return false;
  const auto type = part.find("type");
  return type != part.end() && *type == "image_url";
}

// The bytes behind a data: URL.
std::string bytes_of(const std::string& url, const std::string& path) {
  constexpr std::string_view kTypes[] = {"image/png", "image/x-portable-anymap",
                                         "image/x-portable-graymap", "image/x-portable-pixmap"};
  constexpr std::string_view kScheme = "data:", kEncoding = ";base64";
  if (!url.starts_with(kScheme)) {
    refuse_field(path,
                 "must be a data: URL: images are not fetched (send the bytes of the file, "
                 "\"data:image/png;base64,...\")");
  }
  const size_t comma = std::min(url.find(','), url.size());
  std::string_view type = std::string_view(url).substr(kScheme.size(), comma - kScheme.size());
  const bool encoded = comma < url.size() && type.ends_with(kEncoding);
  if (encoded) type.remove_suffix(kEncoding.size());
  if (!encoded || std::ranges::find(kTypes, type) == std::end(kTypes)) {
    refuse_field(path,
                 "must be base64 of a PNG, PGM or PPM (\"data:image/png;base64,...\", or "
                 "image/x-portable-graymap, image/x-portable-pixmap)");
  }
  const std::optional<std::string> bytes = from_base64(std::string_view(url).substr(comma + 1));
  if (!bytes) refuse_field(path, "is not base64");
  return *bytes;
}

}  // namespace

Json without_image(const Json& message, const std::string& path, Chat& chat) {
  if (!message.is_object()) return message;
  const auto content = message.find("content");
  if (content == message.end() || !content->is_array() ||
      std::ranges::none_of(*content, is_image_part)) {
    return message;
  }
  Json rest = message;
  rest["content"] = Json::array();
  for (size_t i = 0; i < content->size(); ++i) {
    const Json& part = (*content)[i];
    if (!is_image_part(part)) {
      rest["content"].push_back(part);
      continue;
    }
    const std::string at = fmt::format("{}.content[{}]", path, i);
    if (!chat.image.is_null()) {
      throw ApiError(400, "unsupported_content",
                     at + " is a second image; a model sees one, before the text", at);
    }
    chat.image = Fields(part, at).required("image_url");
    chat.image_path = at + ".image_url";
  }
  return rest;
}

std::shared_ptr<const Image> seen_image(const ServedModel& model, const Chat& chat) {
  if (chat.image.is_null()) return nullptr;
  const std::optional<ImageConfig>& vision = model.model->config().vision;
  if (!vision) {
    throw ApiError(400, "unsupported_content",
                   model.name +
                       " sees no images: leave them out, or ask a model with \"vision\" in its "
                       "configuration",
                   chat.image_path);
  }
  const std::string url = chat.image.is_string() ? chat.image.get<std::string>()
                                                 : Fields(chat.image, chat.image_path).text("url");
  const std::string bytes = bytes_of(url, chat.image_path);
  try {
    auto image = std::make_shared<Image>(
        decode_image(bytes, chat.image_path, std::max<int64_t>(1, vision->width * vision->height)));
    check_seen(*model.model, *image);
    return image;
  } catch (const Error& error) {
    throw ApiError(400, "invalid_image",
                   fmt::format("{} ({} sees {} by {} pixels of {} numbers)", error.what(),
                               model.name, vision->width, vision->height, vision->channels),
                   chat.image_path);
  }
}

}  // namespace pronghorn::serve
