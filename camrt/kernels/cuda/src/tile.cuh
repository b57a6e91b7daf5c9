// Tiles of the output of a resize: a block of kTileWidth x kTileThreadRows threads makes kTileWidth x kTileHeight
// pixels. What the rows and columns of a tile read is worked out once a block.
#pragma once

#include "camrt/math/interpolation.hpp"
#include "reduce.cuh"

namespace camrt {

constexpr int kTileWidth = 32;
constexpr int kTileHeight = 16;
constexpr int kTileThreadRows = 8;
constexpr int kTileThreads = kTileWidth * kTileThreadRows;
constexpr int kTilePixels = kTileHeight / kTileThreadRows;

struct TileTaps {
    Tap columns[kTileWidth];
    Tap rows[kTileHeight];
};

struct Tile {
    int height;  // of the output
    int width;
    int first_row;
    int first_column;

    // Tile blockIdx.x, row by row.
    __device__ Tile(int output_height, int output_width) : height(output_height), width(output_width) {
        const int across = (output_width + kTileWidth - 1) / kTileWidth;
        first_row = static_cast<int>(blockIdx.x) / across * kTileHeight;
        first_column = static_cast<int>(blockIdx.x) % across * kTileWidth;
    }

    __device__ int column() const { return first_column + static_cast<int>(threadIdx.x); }
    __device__ int row(int pixel) const { return first_row + static_cast<int>(threadIdx.y) + pixel * kTileThreadRows; }
    __device__ bool holds(int pixel) const { return column() < width && row(pixel) < height; }
    __device__ long long index(int pixel) const { return static_cast<long long>(row(pixel)) * width + column(); }

    // Where the tile reads a map of the size given. To be called by all threads of the block.
    __device__ void set_taps(TileTaps& taps, int map_height, int map_width) const {
        const int thread = thread_number();
        __syncthreads();  // the taps before may still be read
        if (thread < kTileWidth) {
            const int at = first_column + thread < width ? first_column + thread : width - 1;
            taps.columns[thread] = tap_at(resized_point(at, width, map_width), map_width);
        } else if (thread < kTileWidth + kTileHeight) {
            const int row_of_thread = first_row + thread - kTileWidth;
            const int at = row_of_thread < height ? row_of_thread : height - 1;
            taps.rows[thread - kTileWidth] = tap_at(resized_point(at, height, map_height), map_height);
        }
        __syncthreads();
    }

    __device__ float sample(const TileTaps& taps, const float* map, int map_width, int pixel) const {
        return sample_between(map, map_width, taps.rows[row(pixel) - first_row], taps.columns[threadIdx.x]);
    }
};

}  // namespace camrt
