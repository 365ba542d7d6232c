"""Small real programs, and a policy of one rule as a bundle."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from services.inlining.features import FEATURES, WIDTH
from shared.bundles import TensorSpec, write_manifest

# A queue on a ring, a sum of squares and a parser of numbers: calls that pay, calls that do not, recursion, a static
# function that goes when all its callers have it.
QUEUE = """
#include <stdlib.h>
#include <string.h>

struct queue { int *items; int head, count, size; };

static int wrap(const struct queue *q, int at) { return at >= q->size ? at - q->size : at; }
static int full(const struct queue *q) { return q->count == q->size; }

static int grow(struct queue *q) {
  int size = q->size ? q->size * 2 : 4;
  int *items = malloc(size * sizeof *items);
  if (!items) return -1;
  for (int i = 0; i < q->count; i++) items[i] = q->items[wrap(q, q->head + i)];
  free(q->items);
  q->items = items; q->head = 0; q->size = size;
  return 0;
}

int push(struct queue *q, int value) {
  if (full(q) && grow(q)) return -1;
  q->items[wrap(q, q->head + q->count)] = value;
  q->count++;
  return 0;
}

int pop(struct queue *q, int *value) {
  if (!q->count) return -1;
  *value = q->items[q->head];
  q->head = wrap(q, q->head + 1);
  q->count--;
  return 0;
}

static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }
int brighten(unsigned char *p, int n, int by) {
  int changed = 0;
  for (int i = 0; i < n; i++) {
    int v = clamp(p[i] + by, 0, 255);
    changed += v != p[i];
    p[i] = v;
  }
  return changed + clamp(by, -9, 9);
}
"""
# Loops that call what is too large for -O3 to inline.
LINES = "".join(f"  sum += p[(n + {k}) & 63] * (by + {k}) ^ (sum >> {1 + k % 7});\n" for k in range(40))
SCALED = f"""
static int scaled(const int *p, int n, int by) {{
  int sum = 0;
{LINES}  return sum;
}}
int all(const int *p, int n) {{
  int sum = 0;
  for (int i = 0; i < n; i++) sum += scaled(p, i, 3);
  return sum;
}}
int some(const int *p, int n) {{
  int sum = 0;
  for (int i = 0; i < n; i += 2) sum ^= scaled(p + 1, i, n);
  return sum;
}}
"""
PARSER = """
#include <ctype.h>
#include <stddef.h>

static const char *skip(const char *s) { while (isspace((unsigned char)*s)) s++; return s; }
static long number(const char **s) {
  long value = 0;
  while (isdigit((unsigned char)**s)) value = value * 10 + *(*s)++ - '0';
  return value;
}
static long sum(const char **s);
static long factor(const char **s) {
  *s = skip(*s);
  if (**s == '(') {
    (*s)++;
    long value = sum(s);
    *s = skip(*s);
    if (**s == ')') (*s)++;
    return value;
  }
  if (**s == '-') { (*s)++; return -factor(s); }
  return number(s);
}
static long product(const char **s) {
  long value = factor(s);
  for (*s = skip(*s); **s == '*'; *s = skip(*s)) { (*s)++; value *= factor(s); }
  return value;
}
static long sum(const char **s) {
  long value = product(s);
  for (*s = skip(*s); **s == '+'; *s = skip(*s)) { (*s)++; value += product(s); }
  return value;
}
long evaluate(const char *text) { return text ? sum(&text) : 0; }
"""
CHECKSUMS = """
#include <stdint.h>
#include <stdio.h>

static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }
static uint32_t mix(uint32_t h, uint32_t k) { return rotate(h ^ (rotate(k * 0xcc9e2d51u, 15) * 0x1b873593u), 13); }
uint32_t murmur(const uint32_t *words, int n, uint32_t seed) {
  uint32_t h = seed;
  for (int i = 0; i < n; i++) h = mix(h, words[i]) * 5 + 0xe6546b64u;
  return mix(h, n);
}
uint32_t pair(uint32_t a, uint32_t b) { return mix(mix(0, a), b) ^ mix(mix(1, b), a); }
void show(const uint32_t *words, int n) {
  printf("%08x %08x\\n", murmur(words, n, 1), pair(words[0], words[n - 1]));
}
"""
PROGRAMS = {"queue": QUEUE, "parser": PARSER, "checksums": CHECKSUMS}
RULE = FEATURES.index("cost_estimate")


def policy_bundle(folder, *, inverted=False, width=WIDTH):
    """A policy that inlines where the cost model's estimate is not above zero (or, inverted, where it is)."""
    folder.mkdir(parents=True, exist_ok=True)
    slope = 8.0 if inverted else -8.0
    first = np.zeros((40, 3 * WIDTH), np.float32)
    first[0, RULE] = 1  # the share x of the rule's feature; then its square, then its root
    weights = {"layer0.weight": first, "layer0.bias": np.zeros(40, np.float32)}
    for number, (rows, columns) in enumerate([(40, 40), (20, 40), (1, 20)], start=1):
        weight = np.zeros((rows, columns), np.float32)
        weight[0, 0] = slope if rows == 1 else 1
        bias = np.zeros(rows, np.float32)
        bias[0] = -slope / 2 if rows == 1 else 0
        weights |= {f"layer{number}.weight": weight, f"layer{number}.bias": bias}
    save_file(weights, folder / "weights.safetensors")
    calibration = {"features": list(FEATURES), "quantiles": np.zeros((WIDTH, 3)).tolist(), "threshold": 0.5}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    given = helper.make_tensor_value_info("features", TensorProto.INT64, ["batch", width])
    out = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch"])
    constants = [
        onnx.numpy_helper.from_array(np.array(RULE), "rule"),
        onnx.numpy_helper.from_array(np.array(0), "zero"),
        onnx.numpy_helper.from_array(np.array(slope, np.float32), "slope"),
        onnx.numpy_helper.from_array(np.array(-slope / 2, np.float32), "middle"),
    ]
    nodes = [
        helper.make_node("Gather", ["features", "rule"], ["cost"], axis=1),
        helper.make_node("Greater", ["cost", "zero"], ["above"]),
        helper.make_node("Cast", ["above"], ["share"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["share", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(nodes, "rule", [given], [out], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    write_manifest(
        folder,
        files=["model.onnx", "weights.safetensors", "calibration.json"],
        name="inlining",
        domain="inlining",
        graphs={"fp32": "model.onnx"},
        inputs=[TensorSpec(name="features", dtype="int64", shape=["batch", width])],
        outputs=[TensorSpec(name="probability", dtype="float32", shape=["batch"])],
    )
    return folder
