"""The server: explanations over gRPC. See camrt.server.app."""
