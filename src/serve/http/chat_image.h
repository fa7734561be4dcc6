// The image of a chat: a part of a message, and what a model that sees reads before the text.
#pragma once

#include <memory>
#include <string>

#include "formats/image.h"
#include "serve/http/chat_prompt.h"

namespace pronghorn::serve {

// Whether a part of a message is an image, in the form of chat completions ({"type": "image_url",
// "image_url": {"url"}}), of responses ({"type": "input_image", "image_url"}) or of messages
// ({"type": "image", "source": {"type": "base64", "media_type", "data"}}); it becomes the chat's.
// path: "messages[2].content[0]". The part must outlive the chat. Throws ApiError for one without
// it, and for a second image.
bool take_image(const Json& part, const std::string& path, Chat& chat);

// The chat's image, which the model can see; null if there is none. Throws ApiError for a model
// that sees none, for other URLs than data: with base64 of a PNG, PGM or PPM (nothing is fetched),
// and for an image of another size than the model's.
std::shared_ptr<const Image> seen_image(const ServedModel& model, const Chat& chat);

}  // namespace pronghorn::serve
