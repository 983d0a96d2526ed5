package exporter

import (
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/exporter/compress"
)

// Docker's media types (image manifest version 2, schema 2:
// https://distribution.github.io/distribution/spec/manifest-v2-2/); that of
// zstd is containerd's.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// compressionOf is the compression that a layer's media type says.
func compressionOf(mediaType string) string {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return compress.Gzip
	case strings.HasSuffix(mediaType, "zstd"):
		return compress.Zstd
	}
	return compress.Uncompressed
}

// layerType is mediaType in OCI's terms or in Docker's. Types that are neither
// stay. Layers that once were not to be distributed become ordinary ones; the
// image specification has deprecated the difference.
func layerType(mediaType string, docker bool) string {
	switch mediaType {
	case specs.MediaTypeImageLayer, specs.MediaTypeImageLayerGzip, specs.MediaTypeImageLayerZstd,
		dockerLayer, dockerLayerGzip, dockerLayerZstd, dockerForeign,
		specs.MediaTypeImageLayerNonDistributable,     //nolint:staticcheck // read, never made
		specs.MediaTypeImageLayerNonDistributableGzip, //nolint:staticcheck
		specs.MediaTypeImageLayerNonDistributableZstd: //nolint:staticcheck
	default:
		return mediaType
	}
	types := map[string][2]string{
		compress.Gzip:         {specs.MediaTypeImageLayerGzip, dockerLayerGzip},
		compress.Zstd:         {specs.MediaTypeImageLayerZstd, dockerLayerZstd},
		compress.Uncompressed: {specs.MediaTypeImageLayer, dockerLayer},
	}[compressionOf(mediaType)]
	if docker {
		return types[1]
	}
	return types[0]
}

func manifestType(docker bool) string {
	if docker {
		return dockerManifest
	}
	return specs.MediaTypeImageManifest
}

func configType(docker bool) string {
	if docker {
		return dockerConfig
	}
	return specs.MediaTypeImageConfig
}

func indexType(docker bool) string {
	if docker {
		return dockerManifestList
	}
	return specs.MediaTypeImageIndex
}
