// The post_processor of a tokenizer.json: the ids it puts around a text.
#pragma once

#include "io/json.h"
#include "io/tokenizer_files.h"

namespace trivium::io {

// Sets parts.prefix and parts.suffix; needs the vocabularies. ModelFormatError for what is neither ByteLevel
// (which concerns offsets alone) nor one TemplateProcessing, or a Sequence of these.
void read_post_processor(const JsonValue& post, TokenizerParts& parts);

}  // namespace trivium::io
