// The CPU kernels that are the same on every level: plain loops.
#pragma once

#include "ops/args.h"
#include "ops/mlstm_args.h"

namespace trivium::cpu {

void convert(const ConvertArgs&);
void embedding(const EmbeddingArgs&);
void rope_table(const RopeTableArgs&);
void rope(const RopeArgs&);
void rope_kv(const RopeKvArgs&);
void moe_route(const MoeRouteArgs&);
void moe_permute(const MoePermuteArgs&);
void moe_combine(const MoeCombineArgs&);
void mxfp4_decode(const Mxfp4DecodeArgs&);
void sample(const SampleArgs&);
void mlstm_gates(const MlstmGatesArgs&);
void soft_cap(const SoftCapArgs&);

}  // namespace trivium::cpu
