// Explains an image with a camrt server: prints the predicted class with its probability and saves the overlay.
//
//   explain SERVER IMAGE OVERLAY.png        e.g. explain 127.0.0.1:50051 photo.jpg overlay.png

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "camrt/v1/explainer.grpc.pb.h"

namespace {

using camrt::v1::ExplainerService;
using camrt::v1::ExplainRequest;
using camrt::v1::ExplainResponse;

constexpr int kMessageBytes = 32 * 1024 * 1024;  // as the server; without it gRPC refuses replies above 4 MiB
constexpr std::chrono::seconds kTimeout{30};

std::string read_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error("Cannot read " + path);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream stream(path, std::ios::binary);
    stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    stream.close();
    if (!stream) throw std::runtime_error("Cannot write " + path);
}

// A client over plain text: for servers on this machine.
std::unique_ptr<ExplainerService::Stub> connect(const std::string& server) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMessageBytes);
    arguments.SetMaxSendMessageSize(kMessageBytes);
    return ExplainerService::NewStub(grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments));
}

// Explains the predicted class of an encoded image; the map comes as an overlay, PNG.
ExplainResponse explain(ExplainerService::Stub& stub, std::string encoded) {
    ExplainRequest request;
    request.mutable_image()->set_encoded(std::move(encoded));
    request.mutable_output()->set_encoding(camrt::v1::MAP_ENCODING_OVERLAY_PNG);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    ExplainResponse response;
    const grpc::Status status = stub.Explain(&context, request, &response);
    if (!status.ok()) {
        throw std::runtime_error("gRPC status " + std::to_string(status.error_code()) + ": " + status.error_message());
    }
    if (response.explanations().empty()) throw std::runtime_error("The reply holds no explanation");
    return response;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("Usage: explain SERVER IMAGE OVERLAY.png");
    const auto stub = connect(argv[1]);
    const ExplainResponse response = explain(*stub, read_file(argv[2]));
    const auto& explanation = response.explanations(0);
    write_file(argv[3], explanation.saliency_map().data());
    const auto& prediction = explanation.prediction();
    const std::string name =
        prediction.class_name().empty() ? std::to_string(prediction.class_index()) : prediction.class_name();
    std::printf("%s %.3f\n", name.c_str(), static_cast<double>(prediction.probability()));
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
