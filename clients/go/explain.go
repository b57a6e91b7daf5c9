// Command explain explains an image with a camrt server: it prints the predicted class with its probability and saves
// the overlay.
//
//	explain SERVER IMAGE OVERLAY.png        e.g. explain 127.0.0.1:50051 photo.jpg overlay.png
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"

	pb "camrt/v1"
)

const (
	messageBytes = 32 << 20 // as the server; without it gRPC refuses replies above 4 MiB
	timeout      = 30 * time.Second
)

// explain explains the predicted class of an encoded image; the map comes as an overlay, PNG.
func explain(ctx context.Context, server string, encoded []byte) (*pb.Explanation, error) {
	connection, err := grpc.DialContext(ctx, server,
		grpc.WithInsecure(), // plain text: for servers on this machine
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes), grpc.MaxCallSendMsgSize(messageBytes)))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	response, err := pb.NewExplainerServiceClient(connection).Explain(ctx, &pb.ExplainRequest{
		Image:  &pb.Image{Source: &pb.Image_Encoded{Encoded: encoded}},
		Output: &pb.OutputOptions{Encoding: pb.MapEncoding_MAP_ENCODING_OVERLAY_PNG},
	})
	if err != nil {
		return nil, err
	}
	if len(response.Explanations) == 0 {
		return nil, errors.New("the reply holds no explanation")
	}
	return response.Explanations[0], nil
}

func run(arguments []string) error {
	if len(arguments) != 3 {
		return errors.New("usage: explain SERVER IMAGE OVERLAY.png")
	}
	encoded, err := os.ReadFile(arguments[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	explanation, err := explain(ctx, arguments[0], encoded)
	if err != nil {
		return err
	}
	if err := os.WriteFile(arguments[2], explanation.SaliencyMap.Data, 0o644); err != nil {
		return err
	}
	prediction := explanation.Prediction
	name := prediction.ClassName
	if name == "" {
		name = fmt.Sprint(prediction.ClassIndex)
	}
	fmt.Printf("%s %.3f\n", name, prediction.Probability)
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
