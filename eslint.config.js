import js from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["dist/", "dist-lambda/", "node_modules/", ".cache/"] },
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [...tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/restrict-template-expressions": [
        "error",
        { allowNumber: true, allowBoolean: true },
      ],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "@typescript-eslint/prefer-promise-reject-errors": "off", // a run's abort reason is passed on as it is
      "@typescript-eslint/only-throw-error": ["error", { allowThrowingUnknown: true }],
      "@typescript-eslint/no-non-null-assertion": "off", // with noUncheckedIndexedAccess, after a check
      "@typescript-eslint/explicit-module-boundary-types": "error",
      "@typescript-eslint/unbound-method": "off",
      "@typescript-eslint/no-unnecessary-condition": ["error", { allowConstantLoopConditions: true }],
      "@typescript-eslint/switch-exhaustiveness-check": "error",
      "no-restricted-exports": ["error", { restrictDefaultExports: { direct: true } }],
    },
  },
  {
    files: ["src/**/*.ts"],
    ignores: ["src/cli/**", "src/lambda/**", "src/qemu/guard/guard-process.ts"],
    rules: {
      "no-restricted-globals": ["error", { name: "process", message: "only the edges know the process" }],
      "no-console": "error",
    },
  },
  { files: ["*.config.ts"], rules: { "no-restricted-exports": "off" } }, // vitest asks for a default export
  {
    files: ["bin/*.js", "*.js", "deploy/lambda/*.js", "test/bench/*.js"],
    languageOptions: {
      globals: {
        process: "readonly",
        console: "readonly",
        URL: "readonly",
        performance: "readonly",
        AbortController: "readonly",
      },
    },
  },
);
