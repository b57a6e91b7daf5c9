// Bilinear resampling of maps. Arrays are those of KernelBackend.resize and warp_affine.
#include "tile.cuh"

// Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    resize_maps(const float* maps, int map_height, int map_width, float* output, int height, int width) {
    __shared__ camrt::TileTaps taps;
    const camrt::Tile tile(height, width);
    tile.set_taps(taps, map_height, map_width);
    const long long index = blockIdx.y;
    const float* const map = maps + index * map_height * map_width;
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            output[index * height * width + tile.index(pixel)] = tile.sample(taps, map, map_width, pixel);
        }
    }
}

// (x, y) of the source = m * (column + 0.5, row + 0.5, 1). Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    warp_maps(const float* maps, int map_height, int map_width, float* output, int height, int width, float m00,
              float m01, float m02, float m10, float m11, float m12) {
    const camrt::Tile tile(height, width);
    const long long index = blockIdx.y;
    const float* const map = maps + index * map_height * map_width;
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            const double column = tile.column() + 0.5;
            const double row = tile.row(pixel) + 0.5;
            const double x = static_cast<double>(m00) * column + static_cast<double>(m01) * row + m02;
            const double y = static_cast<double>(m10) * column + static_cast<double>(m11) * row + m12;
            output[index * height * width + tile.index(pixel)] = camrt::sample_at(map, map_height, map_width, x, y);
        }
    }
}
