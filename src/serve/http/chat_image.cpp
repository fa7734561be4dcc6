#include "serve/http/chat_image.h"

#include <algorithm>

#include "base/base64.h"
#include "base/error.h"
#include "decode/session.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

// The URL of an image: the image itself, as responses have it, {"url"}, as chat completions do, or
// what Anthropic's API calls a source, bytes or a URL.
std::string url_of(const Json& image, const std::string& path) {
  if (image.is_string()) return image.get<std::string>();
  Fields fields(image, path);
  const std::string type = fields.text("type", "url");
  if (type == "url") return fields.text("url");
  if (type != "base64") {
    refuse_field(path + ".type", "must be \"base64\" or \"url\", is " + shown(Json(type)));
  }
  return fmt::format("data:{};base64,{}", fields.text("media_type"), fields.text("data"));
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

bool take_image(const Json& part, const std::string& path, Chat& chat) {
  if (!part.is_object() || !part.contains("type")) return false;
  const Json& type = part["type"];
  const bool anthropic = type == "image";
  if (!anthropic && type != "image_url" && type != "input_image") return false;
  if (chat.image != nullptr) {
    throw ApiError(400, "unsupported_content",
                   path + " is a second image; a model sees one, before the text", path);
  }
  const std::string key = anthropic ? "source" : "image_url";
  chat.image = &Fields(part, path).required(key);
  chat.image_path = path + "." + key;
  return true;
}

std::shared_ptr<const Image> seen_image(const ServedModel& model, const Chat& chat) {
  if (chat.image == nullptr) return nullptr;
  const std::optional<ImageConfig>& vision = model.model->config().vision;
  if (!vision) {
    throw ApiError(400, "unsupported_content",
                   model.name +
                       " sees no images: leave them out, or ask a model with \"vision\" in its "
                       "configuration",
                   chat.image_path);
  }
  const std::string bytes = bytes_of(url_of(*chat.image, chat.image_path), chat.image_path);
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
