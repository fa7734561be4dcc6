// The image of a chat: a part of a message, and what a model that sees reads before the text.
#pragma once

#include <memory>
#include <string>

#include "formats/image.h"
#include "serve/http/chat_prompt.h"

namespace pronghorn::serve {

// The message without its parts of the type image_url ({"type": "image_url", "image_url":
// {"url"}}), the one of which becomes the chat's image. Throws ApiError for a part without it, and
// for a second image.
Json without_image(const Json& message, const std::string& path, Chat& chat);

// The chat's image, which the model can see; null if there is none. Throws ApiError for a model
// that sees none, for other URLs than data: with base64 of a PNG, PGM or PPM (nothing is fetched),
// and for an image of another size than the model's.
std::shared_ptr<const Image> seen_image(const ServedModel& model, const Chat& chat);

}  // namespace pronghorn::serve
