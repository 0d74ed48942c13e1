#define ROUNDS 3
