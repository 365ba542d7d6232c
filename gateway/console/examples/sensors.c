/* Reads the frames of a small sensor board: a checksum, fields of bits, a few statistics.
   Written for Fourfold's console; any C source, LLVM IR or bitcode of yours does as well. */
#include <stdint.h>
#include <string.h>

#define CHANNELS 6

struct frame { uint8_t kind, sequence, flags, length; uint8_t body[32]; uint8_t check; };
struct channel { int32_t least, most, sum; uint32_t count; };
struct board { struct channel channels[CHANNELS]; uint32_t lost, broken; uint8_t expected; };

void report(int channel, int32_t mean, int32_t spread);

/* Sum of squares of n values: a loop that goes away where n is one. */
static int32_t energy(const int16_t *values, int n) {
  int32_t sum = 0;
  for (int i = 0; i < n; i++) sum += values[i] * values[i] + (sum >> 3);
  return sum;
}

static int32_t largest(const int16_t *values, int n) {
  int32_t most = values[0];
  for (int i = 1; i < n; i++) most = values[i] > most ? values[i] : most;
  return most;
}

static uint8_t checksum(const uint8_t *bytes, int n, uint8_t start) {
  uint8_t sum = start;
  for (int i = 0; i < n; i++) {
    sum ^= bytes[i];
    for (int bit = 0; bit < 8; bit++) sum = sum & 0x80 ? (uint8_t)(sum << 1 ^ 0x07) : (uint8_t)(sum << 1);
  }
  return sum;
}

static uint32_t bits(const uint8_t *bytes, int at, int n) {
  uint32_t found = 0;
  for (int i = 0; i < n; i++) found = found << 1 | (bytes[(at + i) >> 3] >> (7 - ((at + i) & 7)) & 1);
  return found;
}

static void note(struct channel *channel, int32_t value) {
  if (!channel->count || value < channel->least) channel->least = value;
  if (!channel->count || value > channel->most) channel->most = value;
  channel->sum += value;
  channel->count++;
}

static int valid(const struct frame *frame) {
  if (frame->length > sizeof frame->body) return 0;
  return checksum(frame->body, frame->length, checksum(&frame->kind, 1, frame->sequence)) == frame->check;
}

int read_frame(struct board *board, const struct frame *frame) {
  if (!valid(frame)) {
    board->broken++;
    return -1;
  }
  if (frame->sequence != board->expected) board->lost += (uint8_t)(frame->sequence - board->expected);
  board->expected = (uint8_t)(frame->sequence + 1);
  for (int i = 0; i < CHANNELS; i++) {
    int32_t value = (int32_t)bits(frame->body, i * 12, 12);
    if (bits(&frame->flags, i, 1)) value -= 4096;
    note(&board->channels[i], value);
  }
  return (int)bits(&frame->flags, 6, 2);
}

void summarise(const struct board *board) {
  for (int i = 0; i < CHANNELS; i++) {
    const struct channel *channel = &board->channels[i];
    if (channel->count) report(i, channel->sum / (int32_t)channel->count, channel->most - channel->least);
  }
}

int32_t loudest(const int16_t *samples, int n) { return energy(samples, n) + largest(samples, n); }

int32_t first_of_pair(const int16_t *samples) {
  return energy(samples, 1) + 3 * largest(samples + 1, 1) - energy(samples + 2, 1);
}

int32_t edge_of_burst(const int16_t *samples) {
  return largest(samples, 1) + energy(samples + 5, 1) - largest(samples + 9, 1);
}
