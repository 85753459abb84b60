// Every op's CUDA source, each in a namespace of its own: `glu_source` has that of `glu`. What includes this has said before what CUDA is.
#pragma once

#include "../../src/launch/activations.cuh"
#include "../../src/launch/flash.cuh"
#include "../../src/launch/numbers.cuh"
#include "../../src/layer_norm/row.cuh"

// The sources have names in common.
namespace attention_source {
#include "../../src/attention/cuda.cu"
}
namespace attention_paged_source {
#include "../../src/attention_paged/cuda.cu"
}
namespace embed_source {
#include "../../src/embed/cuda.cu"
}
namespace glu_source {
#include "../../src/glu/cuda.cu"
}
namespace layer_norm_source {
#include "../../src/layer_norm/cuda.cu"
}
namespace linear_source {
#include "../../src/linear/cuda.cu"
}
namespace pool_source {
#include "../../src/pool/cuda.cu"
}
namespace rms_norm_source {
#include "../../src/rms_norm/cuda.cu"
}
namespace rotary_source {
#include "../../src/rotary/cuda.cu"
}
namespace sample_source {
#include "../../src/sample/cuda.cu"
}
