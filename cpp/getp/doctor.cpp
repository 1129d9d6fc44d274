// getp --doctor: what this installation can use, and why not what it cannot.
#include <sys/sysinfo.h>

#include "core/parallel.h"
#include "core/registry.h"
#include "getp/driver.h"
#include "getp/memory.h"
#include "io/unicode.h"

namespace trivium::getp {

std::string doctor_report() {
  std::string out = concat("trivium ", build_id(), "\n");
  for (const BackendReport& b : backend_report()) {
    out += concat("backend ", b.name, ": ");
    if (b.loaded)
      out += b.file.empty() ? "built in" : b.file;
    else
      out += concat("not available: ", b.reason);
    if (b.loaded && b.devices.empty()) out += concat("; no device: ", b.reason);
    out += "\n";
    for (size_t i = 0; i < b.devices.size(); ++i) {
      if (!b.refusals[i].empty()) {
        out += concat("  ", b.refusals[i], "\n");
        continue;
      }
      const DeviceProperties& d = b.devices[i];
      out += concat("  ", b.name, ":", i, " ", d.name, " (", d.arch, "), ", d.num_units, " units, ",
                    format_bytes(d.free_bytes), " free of ", format_bytes(d.total_bytes), "\n");
    }
  }
  out += concat("cpu level: ", cpu_level(),
                cpu_has_bf16_dot() ? " (default precision bfloat16)" : " (default precision float32)", "\n");
  out += concat("threads: ", num_threads(), "\n");
  struct sysinfo info {};
  if (::sysinfo(&info) == 0)
    out += concat(
        "memory: ", format_bytes(static_cast<int64_t>(info.totalram) * static_cast<int64_t>(info.mem_unit)),
        "\n");
  return out + concat("unicode: ", io::kUnicodeVersion, " (tokenizer tables)\n");
}

int run_doctor(const Options&) {
  print(doctor_report());
  return kExitOk;
}

}  // namespace trivium::getp
