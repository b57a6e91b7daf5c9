"""Model files as other tools write them: old opsets, channels last, half precision, quantised, odd layouts."""
