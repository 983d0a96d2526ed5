package remote

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/remote/s3"
	"github.com/861fb494/build/internal/oci"
)

// inBucket is a cache in a bucket of an S3-compatible store.
type inBucket struct {
	bucket *s3.Bucket
	o      s3.Options
	prefix string
	name   string
}

// newBucket is the bucket that attributes name, or the environment's.
func (s Spec) newBucket(env Env, dry bool) (*inBucket, error) {
	or := func(attr string, names ...string) string {
		v := s.Attrs[attr]
		for _, n := range names {
			if v == "" {
				v = env.Getenv(n)
			}
		}
		return v
	}
	o := s3.Options{
		Bucket: or("bucket", "AWS_BUCKET"), Region: or("region", "AWS_REGION", "AWS_DEFAULT_REGION"),
		Endpoint: or("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), PathStyle: s.Flag("use_path_style", false),
		AccessKey: s.Attrs["access_key_id"], SecretKey: s.Attrs["secret_access_key"], SessionToken: s.Attrs["session_token"],
	}
	if o.AccessKey == "" && o.SecretKey == "" {
		// All of one source: keys of different ones do not fit.
		o.AccessKey, o.SecretKey, o.SessionToken = env.Getenv("AWS_ACCESS_KEY_ID"), env.Getenv("AWS_SECRET_ACCESS_KEY"), env.Getenv("AWS_SESSION_TOKEN")
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Bucket == "" && dry {
		o.Bucket = "of-the-environment"
	}
	if o.Bucket == "" {
		return nil, fmt.Errorf("type s3: no bucket; add bucket=NAME, or set AWS_BUCKET")
	}
	b, err := s3.New(o)
	if err != nil {
		return nil, fmt.Errorf("type s3: %w", err)
	}
	p := &inBucket{bucket: b, o: o, prefix: s.Attrs["prefix"], name: s.Attrs["name"]}
	if p.name == "" {
		p.name = "build"
	}
	return p, nil
}

func (b *inBucket) String() string {
	return "s3://" + b.o.Bucket + "/" + b.prefix + "manifests/" + b.name
}

// Origin has no keys: they are the environment's where it is read.
func (b *inBucket) Origin(oci.Digest) string {
	q := url.Values{"region": {b.o.Region}}
	for name, v := range map[string]string{"endpoint_url": b.o.Endpoint, "prefix": b.prefix} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if b.o.PathStyle {
		q.Set("use_path_style", strconv.FormatBool(true))
	}
	return (&url.URL{Scheme: "cache+s3", Host: b.o.Bucket, RawQuery: q.Encode()}).String()
}

func (b *inBucket) blobKey(d oci.Digest) string { return b.prefix + "blobs/" + d.String() }

func (b *inBucket) Manifest(ctx context.Context, d oci.Digest) ([]byte, error) {
	key := b.prefix + "manifests/" + b.name
	if d != "" {
		key = b.blobKey(d)
	}
	r, _, err := b.bucket.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxManifest+1))
}

func (b *inBucket) Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	r, _, err := b.bucket.Get(ctx, b.blobKey(d.Digest))
	return r, err
}

func (b *inBucket) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	size, ok, err := b.bucket.Has(ctx, b.blobKey(d.Digest))
	return ok && size == d.Size, err
}

func (b *inBucket) Put(ctx context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), _ []string) error {
	if has, err := b.Has(ctx, d); err != nil || has {
		return err
	}
	return b.bucket.Put(ctx, b.blobKey(d.Digest), d.Digest.Encoded(), d.Size, open)
}

func (b *inBucket) Commit(ctx context.Context, manifest []byte) error {
	return b.bucket.Put(ctx, b.prefix+"manifests/"+b.name, digest.FromBytes(manifest).Encoded(), int64(len(manifest)), bytesOf(manifest))
}
