// Renders a chart as `helm template` does and prints its objects as a list in JSON, definitions of resources first.
//
//	chart FOLDER RELEASE NAMESPACE [KEY=VALUE …]
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := render(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func render(arguments []string) error {
	if len(arguments) < 3 {
		return fmt.Errorf("usage: chart FOLDER RELEASE NAMESPACE [KEY=VALUE …]")
	}
	chart, err := loader.Load(arguments[0])
	if err != nil {
		return err
	}
	if err := chart.Validate(); err != nil {
		return err
	}
	given := map[string]interface{}{}
	for _, pair := range arguments[3:] {
		if err := strvals.ParseInto(pair, given); err != nil {
			return err
		}
	}
	options := chartutil.ReleaseOptions{Name: arguments[1], Namespace: arguments[2], Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(chart, given, options, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	// A value that a template names and nobody gave is an error.
	files, err := engine.Engine{Strict: true}.Render(chart, values)
	if err != nil {
		return err
	}
	objects := []json.RawMessage{}
	for _, definition := range chart.CRDObjects() {
		if objects, err = take(objects, definition.Filename, string(definition.File.Data)); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if strings.HasSuffix(name, ".yaml") {
			if objects, err = take(objects, name, files[name]); err != nil {
				return err
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(objects)
}

// Appends the documents of a file.
func take(objects []json.RawMessage, name, text string) ([]json.RawMessage, error) {
	documents := releaseutil.SplitManifests(text)
	keys := make([]string, 0, len(documents))
	for key := range documents {
		keys = append(keys, key)
	}
	sort.Sort(releaseutil.BySplitManifestsOrder(keys))
	for _, key := range keys {
		// Keys that are there twice are an error.
		object, err := yaml.YAMLToJSONStrict([]byte(documents[key]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", name, err, documents[key])
		}
		if string(object) != "null" {
			objects = append(objects, object)
		}
	}
	return objects, nil
}
