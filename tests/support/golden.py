"""Graphs of a tiny model as text, before and after each pass."""

TRACED = """\
name                     computes                                                         shape  parameters  FLOPs
x                        input                                                          1×1×8×8
sym_size                 sym_size(x, 0)
conv2d                   conv2d(x, conv_weight, conv_bias, [4, 4])                      1×8×2×2         136  1,024
reshape                  reshape(conv2d, [sym_size, 8, 4])                                1×8×4
transpose                transpose(reshape, -2, -1)                                       1×4×8
add                      add(transpose, table)                                            1×4×8          32
layer_norm               layer_norm(add, [8], n1_weight, n1_bias, 1e-05, False)           1×4×8          16
linear                   linear(layer_norm, qkv_weight, qkv_bias)                        1×4×24         216  1,536
reshape_1                reshape(linear, [-1, 4, 3, 2, 4])                            1×4×3×2×4
permute                  permute(reshape_1, [2, 0, 3, 1, 4])                          3×1×2×4×4
unbind                   unbind(permute)
getitem                  getitem(unbind, 0)                                             1×2×4×4
getitem_1                getitem(unbind, 1)                                             1×2×4×4
getitem_2                getitem(unbind, 2)                                             1×2×4×4
transpose_1              transpose(getitem_1, -2, -1)                                   1×2×4×4
matmul                   matmul(getitem, transpose_1)                                   1×2×4×4                256
div                      div(matmul, 2)                                                 1×2×4×4
softmax                  softmax(div, -1, torch.float32)                                1×2×4×4
_assert_tensor_metadata  _assert_tensor_metadata(softmax, None, None, torch.float32)
matmul_1                 matmul(softmax, getitem_2)                                     1×2×4×4                256
transpose_2              transpose(matmul_1, 1, 2)                                      1×4×2×4
clone                    clone(transpose_2)                                             1×4×2×4
reshape_2                reshape(clone, [sym_size, 4, 8])                                 1×4×8
linear_1                 linear(reshape_2, proj_weight)                                   1×4×8          64    512
add_1                    add(add, linear_1)                                               1×4×8
layer_norm_1             layer_norm(add_1, [8], n2_weight, n2_bias, 1e-05, False)         1×4×8          16
linear_2                 linear(layer_norm_1, up_weight, up_bias)                         1×4×6          54    384
relu                     relu(linear_2)                                                   1×4×6
linear_3                 linear(relu, down_weight, down_bias)                             1×4×8          56    384
add_2                    add(add_1, linear_3)                                             1×4×8
layer_norm_2             layer_norm(add_2, [8], n3_weight, n3_bias, 1e-05, False)         1×4×8          16
select                   select(layer_norm_2, 1, 0)                                         1×8
linear_4                 linear(select, head_weight, head_bias)                             1×3          27     48
total                                                                                                   633  4,400
"""


CLEAN = """\
name          computes                                                      shape  parameters  FLOPs
x             input                                                       1×1×8×8
sym_size      sym_size(x, 0)
conv2d        conv2d(x, conv_weight, conv_bias, [4, 4])                   1×8×2×2         136  1,024
reshape       reshape(conv2d, [sym_size, 8, 4])                             1×8×4
transpose     transpose(reshape, -2, -1)                                    1×4×8
add           add(transpose, table)                                         1×4×8          32
layer_norm    layer_norm(add, [8], n1_weight, n1_bias, 1e-05, False)        1×4×8          16
linear        linear(layer_norm, qkv_weight, qkv_bias)                     1×4×24         216  1,536
reshape_1     reshape(linear, [-1, 4, 3, 2, 4])                         1×4×3×2×4
permute       permute(reshape_1, [2, 0, 3, 1, 4])                       3×1×2×4×4
unbind        unbind(permute)
getitem       getitem(unbind, 0)                                          1×2×4×4
getitem_1     getitem(unbind, 1)                                          1×2×4×4
getitem_2     getitem(unbind, 2)                                          1×2×4×4
transpose_1   transpose(getitem_1, -2, -1)                                1×2×4×4
matmul        matmul(getitem, transpose_1)                                1×2×4×4                256
div           div(matmul, 2)                                              1×2×4×4
softmax       softmax(div, -1)                                            1×2×4×4
matmul_1      matmul(softmax, getitem_2)                                  1×2×4×4                256
transpose_2   transpose(matmul_1, 1, 2)                                   1×4×2×4
reshape_2     reshape(transpose_2, [sym_size, 4, 8])                        1×4×8
linear_1      linear(reshape_2, proj_weight)                                1×4×8          64    512
add_1         add(add, linear_1)                                            1×4×8
layer_norm_1  layer_norm(add_1, [8], n2_weight, n2_bias, 1e-05, False)      1×4×8          16
linear_2      linear(layer_norm_1, up_weight, up_bias)                      1×4×6          54    384
relu          relu(linear_2)                                                1×4×6
linear_3      linear(relu, down_weight, down_bias)                          1×4×8          56    384
add_2         add(add_1, linear_3)                                          1×4×8
layer_norm_2  layer_norm(add_2, [8], n3_weight, n3_bias, 1e-05, False)      1×4×8          16
select        select(layer_norm_2, 1, 0)                                      1×8
linear_4      linear(select, head_weight, head_bias)                          1×3          27     48
total                                                                                     633  4,400
"""


CANONICAL = """\
name       computes                                                         shape  parameters  FLOPs
pixels     input                                                          1×1×8×8
embed      conv2d                                                           1×4×8         136  1,024
positions  AddConstant(4×8)                                                 1×4×8          32
a0         LayerNorm → Attention(2 heads of 4, scale 0.5, bias of q k v)    1×4×8         296  2,560
m0         LayerNorm → Mlp(6 neurons, relu, bias of fc1 out)                1×4×8         126    768
norm       LayerNorm                                                        1×4×8          16
head       select → linear                                                    1×3          27     48
total                                                                                     633  4,400
"""


FEWER_HEADS = """\
name         computes                                                        shape  parameters  FLOPs
pixels       input                                                         1×1×8×8
embed        conv2d                                                          1×4×8         136  1,024
positions    AddConstant(4×8)                                                1×4×8          32
a0           LayerNorm → Attention(1 head of 4, scale 0.5, bias of q k v)    1×4×8         156  1,280
a0_constant  AddConstant(4×8)                                                1×4×8          32
m0           LayerNorm → Mlp(6 neurons, relu, bias of fc1 out)               1×4×8         126    768
norm         LayerNorm                                                       1×4×8          16
head         select → linear                                                   1×3          27     48
total                                                                                      525  3,120
"""


NO_MLP = """\
name         computes                                                        shape  parameters  FLOPs
pixels       input                                                         1×1×8×8
embed        conv2d                                                          1×4×8         136  1,024
positions    AddConstant(4×8)                                                1×4×8          32
a0           LayerNorm → Attention(1 head of 4, scale 0.5, bias of q k v)    1×4×8         156  1,280
a0_constant  AddConstant(4×8)                                                1×4×8          32
m0_constant  AddConstant(8)                                                  1×4×8           8
norm         LayerNorm                                                       1×4×8          16
head         select → linear                                                   1×3          27     48
total                                                                                      407  2,352
"""


REFITTED = """\
name         computes                                                            shape  parameters  FLOPs
pixels       input                                                             1×1×8×8
embed        conv2d                                                              1×4×8         136  1,024
positions    AddConstant(4×8)                                                    1×4×8          32
a0           LayerNorm → Attention(1 head of 4, scale 0.5, bias of q k v out)    1×4×8         164  1,280
a0_constant  AddConstant(4×8)                                                    1×4×8          32
m0_constant  AddConstant(8)                                                      1×4×8           8
norm         LayerNorm                                                           1×4×8          16
head         select → linear                                                       1×3          27     48
total                                                                                          415  2,352
"""


CONSTANTS_FOLDED = """\
name       computes                                                              shape  parameters  FLOPs
pixels     input                                                               1×1×8×8
embed      conv2d                                                                1×4×8         136  1,024
positions  AddConstant(4×8)                                                      1×4×8          32
a0         LayerNorm → Attention(1 head of 4, scale 0.5, bias of q k v out×T)    1×4×8         188  1,280
norm       LayerNorm                                                             1×4×8          16
head       select → linear                                                         1×3          27     48
total                                                                                          399  2,352
"""


PATCHES_FOLDED = """\
name    computes                                                         shape  parameters  FLOPs
pixels  input                                                          1×1×8×8
embed   PatchTokens(4×4 pixels, tokens before them: 0)                   1×4×8         160  1,024
a0      LayerNorm → Attention(2 heads of 4, scale 0.5, bias of q k v)    1×4×8         296  2,560
m0      LayerNorm → Mlp(6 neurons, relu, bias of fc1 out)                1×4×8         126    768
norm    LayerNorm                                                        1×4×8          16
head    select → linear                                                    1×3          27     48
total                                                                                  625  4,400
"""


NORMS_FOLDED = """\
name    computes                                                                shape  parameters  FLOPs
pixels  input                                                                 1×1×8×8
embed   PatchTokens(4×4 pixels, tokens before them: 0)                          1×4×8         160  1,024
a0      LayerNorm(plain) → Attention(2 heads of 4, scale 0.5, bias of q k v)    1×4×8         280  2,560
m0      LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)                1×4×8         110    768
norm    LayerNorm(plain)                                                        1×4×8
head    select → linear                                                           1×3          27     48
total                                                                                         577  4,400
"""


SCALES_FOLDED = """\
name    computes                                                              shape  parameters  FLOPs
pixels  input                                                               1×1×8×8
embed   PatchTokens(4×4 pixels, tokens before them: 0)                        1×4×8         160  1,024
a0      LayerNorm(plain) → Attention(2 heads of 4, scale 1, bias of q k v)    1×4×8         280  2,560
m0      LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)              1×4×8         110    768
norm    LayerNorm(plain)                                                      1×4×8
head    select → linear                                                         1×3          27     48
total                                                                                       577  4,400
"""


BIASES_FOLDED = """\
name    computes                                                              shape  parameters  FLOPs
pixels  input                                                               1×1×8×8
embed   PatchTokens(4×4 pixels, tokens before them: 0)                        1×4×8         160  1,024
a0      LayerNorm(plain) → Attention(2 heads of 4, scale 1, bias of q out)    1×4×8         272  2,560
m0      LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)              1×4×8         110    768
norm    LayerNorm(plain)                                                      1×4×8
head    select → linear                                                         1×3          27     48
total                                                                                       569  4,400
"""


NARROWED = """\
name       computes                                                                             shape  parameters  FLOPs
pixels     input                                                                              1×1×8×8
embed      PatchTokens(4×4 pixels, tokens before them: 0)                                       1×4×8         160  1,024
a0_tokens  TakeTokens(first 1)                                                                  1×1×8
a0         LayerNorm(plain) → NarrowedAttention(2 heads, scale 1, queries: first 1) of embed    1×1×8         272  1,408
m0         LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)                             1×1×8         110    192
norm       LayerNorm(plain)                                                                     1×1×8
head       select → linear                                                                        1×3          27     48
total                                                                                                         569  2,672
"""


KEYS_ABSORBED = """\
name       computes                                                                             shape  parameters  FLOPs
pixels     input                                                                              1×1×8×8
embed      PatchTokens(4×4 pixels, tokens before them: 0)                                       1×4×8         160  1,024
a0_tokens  TakeTokens(first 1)                                                                  1×1×8
a0         LayerNorm(plain) → AbsorbedAttention(2 heads, scale 1, queries: first 1) of embed    1×1×8         272    768
m0         LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)                             1×1×8         110    192
norm       LayerNorm(plain)                                                                     1×1×8
head       select → linear                                                                        1×3          27     48
total                                                                                                         569  2,032
"""


QKV_PACKED = """\
name    computes                                                                     shape  parameters  FLOPs
pixels  input                                                                      1×1×8×8
embed   PatchTokens(4×4 pixels, tokens before them: 0)                               1×4×8         160  1,024
a0      LayerNorm(plain) → PackedAttention(2 heads, scale 1, q k v of 8+8+8 rows)    1×4×8         288  2,560
m0      LayerNorm(plain) → Mlp(6 neurons, relu, bias of fc1 out)                     1×4×8         110    768
norm    LayerNorm(plain)                                                             1×4×8
head    select → linear                                                                1×3          27     48
total                                                                                              585  4,400
"""


MERGED = """\
name       computes                                                         shape  parameters  FLOPs
pixels     input                                                          1×1×8×8
embed      conv2d                                                           1×4×8         136  1,024
positions  AddConstant(4×8)                                                 1×4×8          32
a0         LayerNorm → Attention(2 heads of 4, scale 0.5, bias of q k v)    1×4×8         296  2,560
t0         MergeTokens(1 token merges)                                      1×3×8                224
m0         LayerNorm → Mlp(6 neurons, relu, bias of fc1 out)                1×3×8         126    576
restore    RestoreTokens()                                                  1×4×8                192
norm       LayerNorm                                                        1×4×8          16
head       select → linear                                                    1×3          27     48
total                                                                                     633  4,624
"""


FEWER_ANSWERS = """\
name       computes                                                         shape  parameters  FLOPs
pixels     input                                                          1×1×8×8
embed      conv2d                                                           1×4×8         136  1,024
positions  AddConstant(4×8)                                                 1×4×8          32
a0         LayerNorm → Attention(2 heads of 4, scale 0.5, bias of q k v)    1×4×8         296  2,560
m0         LayerNorm → Mlp(6 neurons, relu, bias of fc1 out)                1×4×8         126    768
norm       LayerNorm                                                        1×4×8          16
head       select → linear                                                    1×2          18     32
total                                                                                     624  4,384
"""


CASES = {
    "remove_no_ops": (TRACED, CLEAN),
    "canonicalize": (CLEAN, CANONICAL),
    "delete_heads": (CANONICAL, FEWER_HEADS),
    "delete_mlp_paths": (FEWER_HEADS, NO_MLP),
    "compensate": (NO_MLP, REFITTED),
    "fold_constants": (REFITTED, CONSTANTS_FOLDED),
    "fold_patches": (CANONICAL, PATCHES_FOLDED),
    "plain_pixels": (PATCHES_FOLDED, PATCHES_FOLDED),
    "fold_norms": (PATCHES_FOLDED, NORMS_FOLDED),
    "fold_scales": (NORMS_FOLDED, SCALES_FOLDED),
    "fold_biases": (SCALES_FOLDED, BIASES_FOLDED),
    "narrow_to_cls": (BIASES_FOLDED, NARROWED),
    "absorb_keys": (NARROWED, KEYS_ABSORBED),
    "pack_qkv": (BIASES_FOLDED, QKV_PACKED),
    "merge_by_schedule": (CANONICAL, MERGED),
    "undo_merges": (MERGED, CANONICAL),
    "keep_answers": (CANONICAL, FEWER_ANSWERS),
}
"""Each pass's graph before and after. `plain_pixels` changes values alone."""
