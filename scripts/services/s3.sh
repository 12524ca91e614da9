# shellcheck shell=bash
# S3 by versitygw over a folder. It has versions, presigned URLs, multipart uploads and checksums;
# it accepts the SSE-KMS header without echoing it, and has no lifecycle rules.

VERSITYGW=github.com/versity/versitygw/cmd/versitygw@v1.8.0
S3_BUCKET=wyd-media
S3_KEY=wyd-test
S3_SECRET=wyd-test-secret

s3_build() { nice -n 5 env GOBIN="$1" GOFLAGS=-buildvcs=false go install -trimpath "$VERSITYGW"; }

s3_fetch() {
  VERSITYGW_BIN=$(cached "versitygw-${VERSITYGW##*@}" s3_build)/versitygw
  [ -x "$VERSITYGW_BIN" ]
}

# The bucket is a folder of the root; versions must lie outside of it, and both paths be absolute.
s3_up() {
  local folder=$1 port
  s3_fetch || return 1
  mkdir -p "$folder/data/root/$S3_BUCKET" "$folder/data/versions"
  port=$(cat "$folder/port" 2>/dev/null) || port=$(free_port)
  echo "$port" >"$folder/port"
  pid_of "$folder" >/dev/null ||
    spawn "$folder" env ROOT_ACCESS_KEY_ID="$S3_KEY" ROOT_SECRET_ACCESS_KEY="$S3_SECRET" \
      "$VERSITYGW_BIN" --port "127.0.0.1:$port" --region us-east-1 posix --versioning-dir "$folder/data/versions" "$folder/data/root"
  wait_for s3 30 "$folder" port_is_open "$port"
}

s3_down() { halt "$1"; }
s3_env() {
  echo "WYD_TEST_S3_ENDPOINT=http://127.0.0.1:$(cat "$1/port") WYD_TEST_S3_BUCKET=$S3_BUCKET" \
    "AWS_ACCESS_KEY_ID=$S3_KEY AWS_SECRET_ACCESS_KEY=$S3_SECRET AWS_REGION=us-east-1"
}
