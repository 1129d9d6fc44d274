#include "io/tokenizer.h"

#include <pybind11/stl.h>

#include "bindings.h"

namespace trivium::python {

struct TokenIds {
  std::vector<int32_t> ids;
};

}  // namespace trivium::python

namespace pybind11::detail {

template <>
struct type_caster<trivium::python::TokenIds> {
  using Ids = make_caster<std::vector<int32_t>>;
  PYBIND11_TYPE_CASTER(trivium::python::TokenIds, Ids::name);
  bool load(handle source, bool convert) {
    Ids ids;
    if (!ids.load(source, convert))
      throw type_error("ids are " + repr(source).cast<std::string>().substr(0, 100) + ", expected integers");
    value.ids = cast_op<std::vector<int32_t>&&>(std::move(ids));
    return true;
  }
};

}  // namespace pybind11::detail

namespace trivium::python {
namespace {

using io::Tokenizer;

std::vector<int32_t> encode(const Tokenizer& tokenizer, const py::object& text, bool parse_special,
                            bool strict, bool add_special_tokens) {
  const bool is_text = py::isinstance<py::str>(text);
  if (!is_text && !py::isinstance<py::bytes>(text))
    throw py::type_error("encode: text must be str or bytes, not " +
                         std::string(Py_TYPE(text.ptr())->tp_name));
  // A lone surrogate has no UTF-8 form: it becomes "?", or UnicodeEncodeError (a ValueError) when strict.
  const py::bytes bytes =
      is_text ? py::bytes(text.attr("encode")("utf-8", strict ? "strict" : "replace")) : py::bytes(text);
  const std::string_view view = bytes;
  const py::gil_scoped_release release;
  return tokenizer.encode(
      view,
      {.parse_special = parse_special, .strict_utf8 = strict, .add_special_tokens = add_special_tokens});
}

std::string decode_bytes(const Tokenizer& tokenizer, const TokenIds& ids, bool with_specials) {
  const py::gil_scoped_release release;
  return tokenizer.decode(ids.ids, with_specials);
}

}  // namespace

void register_tokenizer(py::module_& m) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(
      m, "Tokenizer",
      "Byte-level BPE tokenizer of a folder (tokenizer.json, *.tiktoken, tokenizer.bin) or one such file.")
      .def(py::init([](const py::object& path) {
             const auto name = py::module_::import("os").attr("fspath")(path).cast<std::string>();
             const py::gil_scoped_release release;
             return std::const_pointer_cast<Tokenizer>(Tokenizer::load(name));
           }),
           py::arg("folder_or_file"))
      .def("encode", encode, py::arg("text"), py::kw_only(), py::arg("parse_special") = false,
           py::arg("strict") = false, py::arg("add_special_tokens") = true,
           "Ids of str or bytes. Special-token text stays text unless parse_special; strict refuses invalid "
           "UTF-8; add_special_tokens adds what the file's template (TemplateProcessing) puts around a text.")
      .def(
          "decode",
          [](const Tokenizer& t, const TokenIds& ids, const std::string& errors, bool with_specials) {
            return py::bytes(decode_bytes(t, ids, with_specials))
                .attr("decode")("utf-8", errors)
                .cast<py::str>();
          },
          py::arg("ids"), py::arg("errors") = "replace", py::arg("with_specials") = false,
          "Text of the ids; `errors` as in bytes.decode. Special tokens are left out unless with_specials.")
      .def(
          "decode_bytes",
          [](const Tokenizer& t, const TokenIds& ids, bool with_specials) {
            return py::bytes(decode_bytes(t, ids, with_specials));
          },
          py::arg("ids"), py::arg("with_specials") = false, "Bytes of the ids, not necessarily valid UTF-8.")
      .def(
          "special_id", [](const Tokenizer& t, const std::string& name) { return t.special_id(name); },
          py::arg("name"), "Id of a special token such as \"<|end|>\", or None.")
      .def("is_special", &Tokenizer::is_special, py::arg("id"))
      .def_property_readonly("vocab_size", &Tokenizer::vocab_size, "Largest id + 1.")
      .def("__len__", [](const Tokenizer& t) { return t.vocab_size(); })
      .def("__repr__",
           [](const Tokenizer& t) { return concat("trivium.Tokenizer(vocab_size=", t.vocab_size(), ")"); });
}

}  // namespace trivium::python
