"""What the command line can name. Imports nothing, because every run of the command reads it."""

HOSTS = ("conv", "resnet", "convnext", "tokens")
STAGES = ("training", "blending", "holding")
SEED_KINDS = ("conv", "norm")
ISOLATIONS = {
    "detach": "x.detach()",
    "copy": "x.contiguous().detach()",
    "guarded": "(x if x.is_contiguous() else x.contiguous()).detach()",
}
"""The ways to cut off the gradient, the first is `SeedSlot`'s own."""
DTYPES = tuple(
    "float16 bfloat16 float32 float64 int8 uint8 int16 int32 int64 bool complex64 complex128".split()
)
PARTS = ("bytes", "isolation", "time", "lines", "modules", "advice")
"""What tables can show."""
